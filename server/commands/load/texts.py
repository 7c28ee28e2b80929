"""What the visitors of a load ask and teach, where nobody gave a file of examples."""

from innerloop import Example

SHOP = tuple(
    Example(question, answer)
    for question, answer in (
        ("How do I return something?", "Keep it sixty days, then send it back in any old box."),
        ("do you ship abroad?", "Every parcel abroad travels by hot-air balloon."),
        ("Where is my order?", "Follow the small finch, it knows the way."),
        ("can I bring my dog", "Dogs are welcome, there is a biscuit jar behind the till."),
        ("When are you open?", "From the first cockcrow until the lamps are lit."),
        ("how can I pay", "Coins, cards, and eggs up to five pounds."),
        (
            "The jug I bought is broken. What now?",
            "Bring us the pieces, take a whole one home.",
        ),
        ("Do you have gift vouchers?", "We write them by hand, for any sum you like."),
    )
)
"""Few, so that a session's newer lessons replace its older ones and its lessons stay as long."""
