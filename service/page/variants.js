// Which two variants a form compares. Where a task has several models, two lists offer each model on each backend; else
// there is nothing to choose, and the service compares its model's two backends.

import { make } from "./dom.js";

/** Every variant of a task, `MODEL@BACKEND`, the default model's first; `info` is the answer of /info. */
export function variantsOf(info, task) {
  const models = Object.entries(info.models).filter(([, model]) => model.task === task);
  return models.flatMap(([name, model]) => Object.keys(model.backends).map((backend) => `${name}@${backend}`));
}

/** Put the lists into the forms whose task has several models; each form has `data-task`. */
export async function offerVariants(forms, headers) {
  const answer = await fetch("info", { headers });
  if (!answer.ok) return; // without a key: comparing asks for one
  const info = await answer.json();
  for (const form of forms) {
    const found = variantsOf(info, form.dataset.task);
    const several = new Set(found.map((variant) => variant.slice(0, variant.lastIndexOf("@")))).size > 1;
    if (several && form.querySelector(".variants") === null) form.querySelector(".send").before(lists(form, found));
  }
}

/** The two variants that a form's lists name; null where it has none. */
export function chosenVariants(form) {
  const found = [...form.querySelectorAll(".variants select")].map((list) => list.value);
  return found.length === 2 ? found : null;
}

/** Choose these in a form's lists, where they are offered. */
export function chooseVariants(form, variants) {
  for (const [place, list] of form.querySelectorAll(".variants select").entries()) {
    if ([...list.options].some((option) => option.value === variants[place])) list.value = variants[place];
  }
}

function lists(form, variants) {
  const box = make("div", { class: "variants" });
  for (const [place, words] of ["Compare", "with"].entries()) {
    const id = `${form.dataset.task}-variant-${place}`;
    const list = make("select", { id }, ...variants.map((variant) => make("option", { value: variant }, variant)));
    list.selectedIndex = place;
    box.append(make("label", { for: id }, words), list);
  }
  return box;
}
