"""Ten lines are an agent: `lmos run examples/billing.py`, then `lmos ask "how much do I owe?"`."""

from lmos_mesh import Agent, Context

agent = Agent("billing", description="Answers questions about bills and payments.")


@agent.capability(
    examples=[
        "show my bill",
        "how much do I owe?",
        "when is my bill due?",
        "what do I have to pay?",
    ]
)
async def view_bill(question: str, context: Context) -> str:
    """Show a customer's latest bill."""
    return "Your bill is 39.99 €, due on the 1st."
