"use strict";
// Draws openapi.json.  FastAPI's own pages would fetch their scripts from another host.

function make(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return schema.items?.anyOf ? `list of (${typeOf(schema.items)})` : `list of ${typeOf(schema.items ?? {})}`;
  const range = [["minimum", "from"], ["maximum", "to"], ["exclusiveMaximum", "below"]].filter(([key]) => key in schema).map(([key, word]) => `${word} ${schema[key]}`);
  return [schema.type ?? "any value", ...range].join(" ");
}

function fields(schema) {
  const list = make("dl");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const needed = schema.required?.includes(name) ? "required" : "default" in field ? `default ${JSON.stringify(field.default)}` : "";
    list.append(make("dt", `${name}: ${typeOf(field)}${needed ? `, ${needed}` : ""}`));
    if (field.description) list.append(make("dd", field.description));
  }
  return list;
}

function operation(method, path, spec, schemas) {
  const section = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", spec.description ?? spec.summary));
  section.className = "panel";
  const body = spec.requestBody?.content["application/json"].schema;
  if (body) {
    const schema = schemas[typeOf(body)];
    const example = schema.examples[0];
    const ordered = Object.fromEntries(Object.keys(schema.properties).filter((name) => name in example).map((name) => [name, example[name]]));
    const filled = path.replace(/\{(\w+)\}/g, (_, name) => spec.parameters.find((each) => each.name === name).schema.enum?.at(-1) ?? name.toUpperCase());
    const key = spec.security ? `-H "authorization: Bearer $POCKETQA_KEY" ` : "";
    const command = `curl ${location.origin}${filled} ${key}-H 'content-type: application/json' \\\n  -d '${JSON.stringify(ordered)}'`;
    section.append(make("h3", "Request"), fields(schema), make("pre", command));
  }
  const list = make("dl");
  for (const [status, response] of Object.entries(spec.responses)) {
    const content = response.content?.["application/json"];
    list.append(make("dt", `${status} ${content?.schema ? typeOf(content.schema) : ""}`));
    for (const [code, example] of Object.entries(content?.examples ?? {})) list.append(make("dd", `${code}: ${example.summary}`));
  }
  section.append(make("h3", "Responses"), list);
  return section;
}

async function draw() {
  const document_ = await (await fetch("/openapi.json")).json();
  const { schemas } = document_.components;
  const parts = [make("p", document_.info.description)];
  for (const [path, methods] of Object.entries(document_.paths)) for (const [method, spec] of Object.entries(methods)) parts.push(operation(method, path, spec, schemas));
  parts.push(make("h2", "Objects"));
  for (const [name, schema] of Object.entries(schemas)) {
    const section = make("section", "", make("h2", name), make("p", schema.description), fields(schema));
    section.className = "panel";
    parts.push(section);
  }
  document.getElementById("docs").replaceChildren(...parts);
  document.getElementById("status").textContent = "";
}

draw().catch(() => {
  document.getElementById("status").textContent = "openapi.json could not be read. Is the service still running? Reload the page to try again.";
});
