// The API key, where the service wants one: asked for after a 401, kept by this tab until it is closed.

import { make } from "./dom.js";

const NAME = "q8bert-api-key";

/** The headers of a request, with the key if there is one. */
export function withKey(headers) {
  const key = sessionStorage.getItem(NAME);
  return key === null ? headers : { ...headers, authorization: `Bearer ${key}` };
}

/** A form that asks for the key, keeps it and calls `again`. */
export function keyForm(again) {
  const field = make("input", { id: "api-key", type: "password", autocomplete: "off", required: "" });
  const form = make("form", {}, make("label", { for: "api-key" }, "API key"), field);
  form.append(make("div", { class: "send" }, make("button", { type: "submit", class: "key" }, "Use this key")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, field.value.trim());
    again();
  });
  return form;
}
