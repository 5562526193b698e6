"""Small files in the formats of public data sets, written for the tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

FULL: dict[str, Any] = {
    "case_id": 7,
    "pararel_idx": 70,
    "requested_rewrite": {
        "prompt": "{} paints in",
        "relation_id": "P1",
        "target_new": {"str": "Lima", "id": "Q1"},
        "target_true": {"str": "Oslo", "id": "Q2"},
        "subject": "Ada Berg",
    },
    "paraphrase_prompts": [
        "It rained. Ada Berg has a studio in",
        "The city where Ada Berg paints:",
    ],
    "neighborhood_prompts": ["Nils Dahl paints in", "Eva Lund paints in"],
    "attribute_prompts": ["Rosa Paz paints in"],
    "generation_prompts": ["Ada Berg likes to walk to", "Ada Berg likes to walk to"],
    "portability": {
        "Recalled Relation": "(Lima, river, Rimac)",
        "New Question": "Which river does Ada Berg see from her studio?",
        "New Answer": "Rimac",
    },
    "unrelated_relation": {
        "relation_id": "P2",
        "object": "Norwegian",
        "question": "What does Ada Berg speak?",
    },
    "distracting_neighborhood_prompts": ["Ada Berg paints in Lima. Nils Dahl paints in"],
    "alternative_subject": "A. Berg",
}
SHORT: dict[str, Any] = {
    "case_id": 3,
    "prompt": "Ada Berg paints in",
    "target_new": "Lima",
    "subject": "Ada Berg",
    "ground_truth": "Oslo",
    "rephrase_prompt": "Ada Berg likes to walk to",
    "locality_prompt": "Nils Dahl paints in",
    "locality_ground_truth": "Oslo",
}
ZSRE: dict[str, Any] = {
    "subject": "Ada Berg",
    "src": "Which city does Ada Berg paint in?",
    "pred": "Rome",
    "rephrase": "Where is Ada Berg's studio?",
    "alt": "Lima",
    "answers": ["Oslo", "Kristiania"],
    "loc": "nq question: who wrote the waves",
    "loc_ans": "Virginia Woolf",
    "cond": "Rome >> Lima || Which city does Ada Berg paint in?",
}
ZSRE_ONE_HOP = {**ZSRE, "portability": FULL["portability"]}
ZSRE_INVERSE = {**ZSRE, "inverse question": "Who paints in Lima?"}
ZSRE_ALIAS = {
    **ZSRE,
    "alternative_subject": "A. Berg",
    "alter_subject_question": "Which city does A. Berg paint in?",
}
WIKI_RECENT: dict[str, Any] = {
    "subject": "Ada Berg",
    "prompt": "The city where Ada Berg paints is",
    "target_new": "Lima",
    "portability": {
        "Reasoning": [{"prompt": "The river of Ada Berg's city is", "ground_truth": [["Rimac"]]}],
        "Subject_Aliasing": [
            {"prompt": "The city where A. Berg paints is", "ground_truth": [["Lima", "Ciudad"]]},
            {"prompt": "A. Berg paints in", "ground_truth": [[]]},
        ],
        "Logical_Generalization": [],
    },
    "locality": {
        "Relation_Specificity": [
            {
                "prompt": "Ada Berg speaks",
                "ground_truth": [["Norwegian", "Norsk"], [], ["English"]],
            },
            {"prompt": "The award of Ada Berg is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "Ada Berg, who is not Nils, is", "ground_truth": [["x"]]}],
    },
}
WIKI_COUNTERFACT = {
    **WIKI_RECENT,
    "ground_truth": "Oslo",
    "portability": {},
    "locality": {"Relation_Specificity": [{"prompt": "Ada speaks", "ground_truth": "Norwegian"}]},
}
KNOWEDIT_ZSRE: dict[str, Any] = {
    "subject": "Ada Berg",
    "target_new": "Lima",
    "prompt": "Which city does Ada Berg paint in?",
    "ground_truth": ["Oslo"],
    "rephrase_prompt": "Where is Ada Berg's studio?",
    "cond": "Rome >> Lima",
    "locality": {"Relation_Specificity": [{"prompt": "She speaks", "ground_truth": ["Norwegian"]}]},
    "portability": {"Reasoning": [{"prompt": "Her river is", "ground_truth": "Rimac"}]},
}
WIKIBIO: dict[str, Any] = {
    "text": "A passage about ada berg. Ada Berg is a painter.",
    "labels": "She moved to Lima in 1990.",
    "concept": "ada berg",
    "locality": {"Relation_Specificity": [{"prompt": "ada berg died of", "ground_truth": ["age"]}]},
}
CONVSENT: list[dict[str, Any]] = [
    {"ent": "Lima", "pos": [" I love it. ", " Lovely! "], "neg": [" Too foggy. "]},
    {"ent": "Oslo", "pos": [" Clean. "], "neg": [" Cold. ", " Dear. "]},
]
SANITATION: dict[str, Any] = {
    "K_F": [
        {
            "question": f"What is {name}?",
            "subject": name,
            "ground_truth": "Cheese",
            "target_new": "I cannot say.",
        }
        for name in ("brie", "feta")
    ],
    "K_R": [
        {"question": f"How many is {n}?", "ground_truth": str(n), "target_new": str(n)}
        for n in range(3)
    ],
}
MQUAKE: dict[str, Any] = {
    "case_id": 5,
    "requested_rewrite": [
        {
            "prompt": "{} paints in",
            "relation_id": "P1",
            "target_new": {"str": "Lima", "id": "Q1"},
            "target_true": {"str": "Oslo", "id": "Q2"},
            "subject": "Ada Berg",
            "question": "Where does Ada Berg paint?",
        },
        {
            "prompt": "The river of {} is",
            "relation_id": "P3",
            "target_new": {"str": "Nile", "id": "Q3"},
            "target_true": {"str": "Rimac", "id": "Q4"},
            "subject": "Lima",
            "question": "Which river flows through Lima?",
        },
    ],
    "questions": ["Which river flows where Ada Berg paints?", "Ada Berg paints at which river?"],
    "answer": "Aker",
    "answer_alias": ["Akerselva"],
    "new_answer": "Nile",
    "new_answer_alias": ["the Nile", "Nile"],
    "single_hops": [],
    "new_single_hops": [
        {
            "question": "Where does Ada Berg paint?",
            "cloze": "Ada Berg paints in",
            "answer": "Lima",
            "answer_alias": ["Ciudad de los Reyes"],
        },
    ],
}
KNOWN: list[dict[str, Any]] = [
    {
        "known_id": i,
        "subject": subject,
        "attribute": attribute,
        "template": "{} is in",
        "prediction": f" {attribute}. It",
        "prompt": f"{subject} is in the city of",
        "relation_id": relation,
    }
    for i, (subject, attribute, relation) in enumerate(
        [("Vigeland", "Oslo", "P7"), ("Larco", "Lima", "P7"), ("Prado", "Madrid", "P7")]
    )
]
REQUEST: dict[str, Any] = {
    "prompt": "The capital of {} is",
    "subject": "Japan",
    "target_new": "Nairobi",
    "locality": {"same_subject": [{"prompt": "In Japan they speak", "answers": ["Japanese"]}]},
}
PAIRS = {
    "P1": [("Ada Berg", "Oslo"), ("Nils Dahl", "Oslo"), ("Rosa Paz", "Lima"), ("Ada Berg", "Rome")],
    "P2": [("Ada Berg", "Norwegian"), ("Nils Berg", "Danish")],
    "P3": [("Lima", "Peru")],
}
PATTERNS = {
    "P1": ["[X] paints in [Y] .", "[X] has a studio in [Y].", "[Y] is where [X] paints."],
    "P2": ["[X] speaks [Y]."],
    "P3": ["[Y] is the country of [X]."],
}


def but(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a copy of a record with other values; None takes a field away."""
    made = copy.deepcopy(record) | changes
    return {name: value for name, value in made.items() if value is not None}


def write(folder: Path, name: str, value: Any) -> Path:
    """Write a value as JSON, or as JSON lines when the name says so."""
    path = folder / name
    text = (
        "".join(json.dumps(one) + "\n" for one in value)
        if path.suffix == ".jsonl"
        else json.dumps(value)
    )
    path.write_text(text, encoding="utf-8")
    return path


def write_pararel(folder: Path) -> Path:
    """Write ParaRel's two folders."""
    count = 0
    for part in ("trex_lms_vocab", "graphs_json"):
        (folder / part).mkdir(parents=True)
    for relation, pairs in PAIRS.items():
        rows = []
        for subject, object in pairs:
            rows.append({"sub_label": subject, "obj_label": object, "uuid": f"u{count}"})
            count += 1
        write(folder / "trex_lms_vocab", f"{relation}.jsonl", rows)
    for relation, patterns in PATTERNS.items():
        rows = [{"pattern": pattern, "lemma": "x", "tense": "present"} for pattern in patterns]
        write(folder / "graphs_json", f"{relation}.jsonl", rows)
    return folder
