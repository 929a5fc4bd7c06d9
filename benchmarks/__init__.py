"""Speed, side by side with QEMU's own guest agent: `make bench`.

The rules:

1. Both agents do the same work on the same machine in the same minute, in turns: a round of one, a round of
   the other. What disturbs the machine disturbs both, so ratios say more than times.
2. A row is a median of many, with its 99th percentile. Nothing is left out of it.
3. qemu-ga is driven the way it is fastest. Who measures a rival badly measures nothing.
4. The table marks what issue 4 demands (must, aim). The exit status says whether it was measured, never
   whether it was fast: a busy machine is no bug.
5. A case that fails is a row that says so, and the others go on.

==========  ===========================================================
module      idea
==========  ===========================================================
`samples`   many measurements of one thing, taken in turns
`goals`     what must be shown, and what is aimed at
`results`   rows, the table and build/bench.json
`clients`   plain clients: one for each agent, alike
`wire`      a client that speaks our protocol on the channel itself
`places`    where agents run: what a case asks of a place
`native`    processes on unix sockets
`guest`     a real guest
`cases/`    one kind of work a module
==========  ===========================================================
"""
