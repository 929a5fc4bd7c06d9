"""The agent's local socket: how programs of the guest, and agents of user sessions, reach the agent."""

#: World-connectable: who may do what is decided by who connects (`caller`). Its directory is systemd's to
#: make.
DEFAULT_SOCKET = "/run/virtagent/guest.sock"
#: The environment variable that names another socket, for the agent and for who connects; "" turns it off.
SOCKET_VARIABLE = "VIRTAGENT_SOCKET"
