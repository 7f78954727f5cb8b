"use strict";
// The page behind /: asks /v1/compare and shows both answers in the passage.
// Text from people and models only ever becomes text nodes; nothing is parsed as HTML.

const ROLES = ["teacher", "student"];
const TITLES = { teacher: "Teacher", student: "Student" };
const STAGES = ["tokenise", "queue", "forward", "decode"];
const SHOWN_ANSWERS = 3;
const NOTHING = "No answer in this passage";

const $ = (id) => document.getElementById(id);
let samples = [];
let shownAnswers = SHOWN_ANSWERS; // or the service's limit, once it is known
let asking = null; // what runs: the body, and how to give it up

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Offsets come in code points; JavaScript strings are UTF-16.  One walk finds the places of all of them.
function toUtf16(text, points) {
  const places = new Map();
  const wanted = [...new Set(points)].sort((a, b) => a - b);
  let unit = 0;
  let point = 0;
  for (const target of wanted) {
    while (point < target && unit < text.length) {
      unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
      point += 1;
    }
    places.set(target, unit);
  }
  return places;
}

function showPassage(text, spans) {
  const places = toUtf16(text, spans.flatMap((span) => [span.start, span.end]));
  const cuts = [...new Set([0, text.length, ...places.values()])].sort((a, b) => a - b);
  const passage = $("passage");
  passage.replaceChildren();
  for (let i = 0; i + 1 < cuts.length; i += 1) {
    const roles = spans.filter((s) => places.get(s.start) <= cuts[i] && cuts[i + 1] <= places.get(s.end)).map((s) => s.role);
    const piece = text.slice(cuts[i], cuts[i + 1]);
    if (!roles.length) {
      passage.append(piece);
      continue;
    }
    const mark = make("mark", roles.join(" "), piece);
    mark.title = roles.map((role) => TITLES[role]).join(" and ");
    passage.append(mark);
  }
  reading(true);
  const first = passage.querySelector("mark");
  passage.scrollTop = first ? first.offsetTop - passage.offsetTop - passage.clientHeight / 3 : 0;
}

function reading(on) {
  const typing = document.activeElement === $("context"); // who is hidden loses the focus, and with it Ctrl+Enter
  $("passage").hidden = $("edit").hidden = $("legend").hidden = !on;
  if (on && typing) $("passage").focus({ preventScroll: true });
  $("context").hidden = on;
}

const digits = (value, most) => value.toLocaleString("en", { maximumFractionDigits: most, minimumFractionDigits: most });
const milliseconds = (value) => `${digits(value, value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
const percent = (score) => (score < 0.005 ? "< 1 %" : score > 0.995 && score < 1 ? "> 99 %" : `${Math.round(100 * score)} %`);

function card(role, side, longest) {
  const node = $("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => node.querySelector(selector);
  const [best, ...others] = side.answers;
  const none = !best || best.is_no_answer;
  node.classList.add(role);
  find("h2").textContent = TITLES[role];
  find(".engine").textContent = `${side.engine} ${side.precision}`;
  find(".answer").textContent = none ? NOTHING : best.text;
  find(".answer").classList.toggle("none", none);
  find(".fill").style.width = `${100 * (best ? best.score : 0)}%`;
  find(".percent").textContent = `${percent(best ? best.score : 0)} confident`;
  const times = side.timings;
  find(".total").textContent = milliseconds(times.total);
  for (const stage of STAGES) {
    const part = make("span", stage);
    part.style.width = `${(100 * times[stage]) / longest}%`;
    find(".stages").append(part);
    find(".times").append(make("dt", stage, stage), make("dd", "", milliseconds(times[stage])));
  }
  for (const other of others) {
    const item = make("li");
    const text = make("span", "", other.is_no_answer ? NOTHING.toLowerCase() : other.text);
    text.dir = "auto";
    item.append(text, make("span", "", percent(other.score)));
    find("ol").append(item);
  }
  find(".others").hidden = !others.length;
  return node;
}

function verdict(data) {
  const { same_span: span, same_text: text, f1 } = data.agreement;
  const none = !data.teacher.answers.some((a, i) => i === 0 && !a.is_no_answer);
  const agree = span ? (none ? "Both find no answer" : "Same answer") : text ? "Same words, another place" : f1 === 1 ? "Same answer, cut differently" : f1 > 0 ? `Answers overlap (F1 ${digits(f1, 2)})` : "Different answers";
  const items = [make("li", "", agree)];
  const ratio = data.speed_ratio;
  if (ratio !== null) {
    const item = make("li");
    const [faster, slower] = [digits(ratio, 1), digits(1 / ratio, 1)];
    const pace = faster === slower ? "as fast as the teacher" : ratio > 1 ? `${faster}× faster` : `${slower}× slower`;
    item.append("Student ", make("span", "ratio", pace));
    items.push(item);
  }
  items.push(make("li", "", `${data.windows} window${data.windows === 1 ? "" : "s"}, ${data.tokens.toLocaleString("en")} tokens`));
  $("verdict").replaceChildren(...items);
  return items.map((item) => item.textContent).join(". ");
}

function show(context, data) {
  const best = ROLES.map((role) => ({ role, ...(data[role].answers[0] ?? { is_no_answer: true }) }));
  showPassage(context, best.filter((answer) => !answer.is_no_answer && answer.source === 0));
  const longest = Math.max(...ROLES.map((role) => data[role].timings.total), 1e-6);
  $("cards").replaceChildren(...ROLES.map((role) => card(role, data[role], longest)));
  $("results").hidden = false;
  const said = best.map((a) => `${TITLES[a.role]}: ${a.is_no_answer ? NOTHING : `${a.text}, ${percent(a.score)} confident`}`);
  $("status").textContent = `${said.join(". ")}. ${verdict(data)}.`;
  // Where everything stands in one column, the answers would come up below the edge of the screen.
  if (matchMedia("(max-width: 979px)").matches) $("results").scrollIntoView();
}

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

async function fetchJson(path, options = {}) {
  // A key is kept nowhere but in its field.
  const key = $("key").value;
  if (/[^ -~]/.test(key)) throw Object.assign(new Error("The API key holds a character that no key has. Copy it again."), { status: 401 });
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service did not answer. Is it still running?");
  }
  const data = await response.json().catch(() => null);
  if (response.ok && data) return data;
  if (response.status === 401) $("key-row").hidden = false;
  const error = data?.error;
  const seconds = response.status === 429 && response.headers.get("retry-after");
  const next = seconds ? `Try again in ${seconds} second${seconds === "1" ? "" : "s"}.` : response.status === 503 && error?.hint;
  const message = error ? [error.message, next].filter(Boolean).join(" ") : `The service answered with status ${response.status}.`;
  throw Object.assign(new Error(message), { status: response.status });
}

function setAsking(next) {
  if (asking) asking.controller.abort();
  asking = next;
  $("ask").textContent = next ? "Asking…" : "Ask";
  $("results").setAttribute("aria-busy", String(Boolean(next)));
}

// Answers belong to the question and passage that are shown: another question gives up the one that runs.
async function ask() {
  const question = $("question").value;
  const context = $("context").value;
  if (!context.trim() || !question.trim()) {
    complain(context.trim() ? "Type a question first." : "Paste a passage first, or choose a sample.");
    if (!context.trim()) reading(false);
    $(context.trim() ? "question" : "context").focus();
    return;
  }
  const body = JSON.stringify({ question, context, top_k: shownAnswers });
  if (asking?.body === body) return;
  complain("");
  const mine = { body, controller: new AbortController() };
  setAsking(mine);
  try {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body, signal: mine.controller.signal };
    const data = await fetchJson("/v1/compare", options);
    if (asking === mine) show(context, data);
  } catch (error) {
    if (asking !== mine) return;
    $("results").hidden = true;
    reading(false);
    complain(error.message);
  } finally {
    if (asking === mine) setAsking(null);
  }
}

function forget() {
  setAsking(null);
  reading(false);
  $("results").hidden = true;
  complain("");
}

function suggest(questions) {
  $("suggestions").hidden = !questions.length;
  $("suggestions").replaceChildren(
    ...questions.map(({ question }) => {
      const chip = make("button", "", question);
      chip.type = "button";
      chip.dir = "auto";
      chip.addEventListener("click", () => {
        $("question").value = question;
        ask();
      });
      return chip;
    }),
  );
}

function chooseSample(index) {
  const sample = samples[index];
  forget();
  $("sample").value = sample ? String(index) : "";
  $("context").value = sample?.context ?? "";
  $("question").value = sample?.questions[0]?.question ?? "";
  suggest(sample?.questions ?? []);
}

async function loadSamples() {
  samples = (await fetchJson("/v1/samples")).samples;
  samples.forEach((sample, index) => $("sample").append(new Option(sample.title, String(index))));
  if (!$("context").value) chooseSample(0); // a reload keeps what was typed
}

function describe(model) {
  const count = (value, unit, by) => (value === null ? [] : [`${digits(value / by, 1)} ${unit}`]);
  const parts = [
    `${model.engine} ${model.engine_version}, ${model.precision}, ${model.threads} thread${model.threads === 1 ? "" : "s"}`,
    ...(model.layers === null ? [] : [`${model.layers} layers`]),
    ...count(model.parameters, "million parameters", 1e6),
    ...count(model.weights_bytes, "MB", 1e6),
    model.weights_sha256 ? `sha256 ${model.weights_sha256.slice(0, 12)}` : "no hash",
  ];
  const item = make("li");
  item.append(make("strong", "", `${TITLES[model.role]}${model.name === model.role ? "" : ` ${model.name}`}: `), parts.join(" · "));
  return item;
}

let loading = false;

async function loadModels() {
  if (loading || $("version").textContent) return;
  loading = true;
  // The page is there before the models are warm.
  for (let attempt = 0; attempt < 120; attempt += 1) {
    try {
      const { models, limits, shadow, version } = await fetchJson("/v1/models");
      shownAnswers = Math.min(SHOWN_ANSWERS, limits.top_k);
      $("models").replaceChildren(...models.map(describe));
      if (shadow) $("models").append(make("li", "", `Shadow: ${percent(shadow)} of the student's requests are put to the teacher too, to compare.`));
      $("version").textContent = `version ${version}`;
      break;
    } catch (error) {
      $("models").replaceChildren(make("li", "", error.message));
      if (error.status === 401) break; // until there is a key
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  loading = false;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  }
});
$("edit").addEventListener("click", () => {
  forget();
  $("context").focus();
});
const givenUp = () => setAsking(null); // what is typed is another question: the answer to the old one would stand under it
$("question").addEventListener("input", givenUp);
$("context").addEventListener("input", () => {
  givenUp();
  $("sample").value = "";
  suggest([]);
});
$("sample").addEventListener("change", (event) => chooseSample(event.target.value === "" ? -1 : Number(event.target.value)));
$("key").addEventListener("change", () => {
  complain("");
  if (!samples.length) loadSamples().catch((error) => complain(error.message));
  loadModels();
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("modifier").textContent = "⌘";
loadSamples().catch((error) => complain(error.message));
loadModels();
