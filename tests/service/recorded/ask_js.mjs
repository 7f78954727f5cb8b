// What a user of @huggingface/inference writes, case by case: node ask_js.mjs ADDRESS [CASE].  The package is found beside this file's copy.
// Prints one JSON object, as ask_hub.py does.
import { readFileSync } from "node:fs";
import * as library from "@huggingface/inference";

const question = "who built it?";
const context = "The mill was built by Ada Bell in Rome.";
const options = { align_to_words: false, doc_stride: 16, handle_impossible_answer: true, max_answer_len: 8, max_question_len: 20, max_seq_len: 64, top_k: 1 };
const cases = {
  plain: { path: "/", inputs: { question, context } },
  options: { path: "/predict", inputs: { question, context }, parameters: options },
  several: { path: "/", inputs: { question, context: "Bell and Bell" }, parameters: { top_k: 3 } },
  unicode: { path: "/", inputs: { question: "who? 😀", context: "😀 שלום Bell" } },
  named: { path: "/models/teacher", inputs: { question, context } },
  token: { path: "/models/student", inputs: { question, context }, accessToken: "a-key-for-a-test" },
  refused: { path: "/", inputs: { question, context }, parameters: { top_k: 1000 } },
};

const { version } = JSON.parse(readFileSync(new URL("./node_modules/@huggingface/inference/package.json", import.meta.url), "utf-8"));
const Client = library.InferenceClient ?? library.HfInference; // its name up to version 3.6
const [address, ...wanted] = process.argv.slice(2);
const found = {};
for (const name of wanted.length ? wanted : Object.keys(cases)) {
  const { path, accessToken, ...body } = cases[name];
  try {
    found[name] = await new Client(accessToken).endpoint(address + path).questionAnswering(body, { retry_on_error: false });
  } catch (error) {
    found[name] = { error: error.name, message: error.message };
  }
}
console.log(JSON.stringify({ version, cases: found }));
