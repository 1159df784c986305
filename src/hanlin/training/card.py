"""The model card that goes with every model we write: what it was made from, under which terms, how, and with what
result.
"""

from hanlin import __version__
from hanlin.models.fetch import KNOWN_MODELS
from hanlin.training.objective import objective_of
from hanlin.training.recipe import Recipe


def model_card(recipe: Recipe, *, results: str = "") -> str:
    """A README.md with the hub's front matter. `results` is Markdown; terms are named for the models we know."""
    known = KNOWN_MODELS.get(recipe.model.path)
    front = ["language:", "- zh", "- en", "library_name: transformers", "pipeline_tag: text-generation"]
    tags = ["tags:", "- hanlin", f"- {recipe.objective.kind}"]
    if known is not None:
        front.append(f"license: {'gemma' if known.family.startswith('gemma') else 'apache-2.0'}")
        terms = f"{known.title}, under the [{known.terms}]({known.terms_url}); origin: {known.origin_url}"
    else:
        terms = f"`{recipe.model.path}`; its licence applies to this model too"
    objective, training = objective_of(recipe.objective), recipe.training
    method = "full fine-tuning" if recipe.lora is None else f"LoRA of rank {recipe.lora.rank}, merged"
    lines = [
        "---",
        *front,
        *tags,
        "---",
        "",
        "# A bilingual chat model tuned with Hanlin · 用翰林微调的双语对话模型",
        "",
        f"- Made from: {terms}",
        f"- Method: {objective.title}, {method}, Hanlin {__version__}",
        f"- {objective.noun.capitalize()}: {', '.join(f'`{path}`' for path in recipe.data.train)}",
        f"- Learning rate {training.learning_rate:g} ({training.schedule}), {training.batch_pairs} {objective.noun} a "
        f"step, seed {training.seed}; the whole recipe is `recipe.toml`",
        "",
        "It is a language model: it can be wrong, and it does not know that it is. Chat with it: `hanlin chat .`",
    ]
    if results:
        lines += ["", "## Before and after · 微调前后", "", results.strip()]
    return "\n".join(lines) + "\n"
