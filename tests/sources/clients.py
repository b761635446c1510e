"""What other clients do with a model, as programs for environments of their own."""

from __future__ import annotations

# A folder and token ids in; the ids of twelve more, out.
GENAI = """
import json, sys
import onnxruntime_genai as og
model, ids = og.Model(sys.argv[1]), json.loads(sys.argv[2])
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(ids) + 12, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps([int(token) for token in generator.get_sequence(0)][len(ids):]))
"""
