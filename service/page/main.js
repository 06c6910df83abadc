// The page's entry: forms, requests, errors and links.

import { make } from "./dom.js";
import { keyForm, withKey } from "./key.js";
import { startCharts } from "./live.js";
import { compareRepeatedly } from "./repeats.js";
import { drawComparison } from "./results.js";
import { wireTabs } from "./tabs.js";
import { chooseVariants, chosenVariants, offerVariants } from "./variants.js";

const LONGEST_LINK = 4000;
const forms = [...document.querySelectorAll("form[data-task]")];
const selectTab = wireTabs(document.querySelector('[role="tablist"]'), hideError);
let running = false;

for (const form of forms) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    compare(form);
  });
  form.addEventListener("keydown", (event) => {
    const writing = event.target.matches("textarea, input");
    // while an input method composes, Enter chooses a word
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !writing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
window.addEventListener("hashchange", compareLinked);
startCharts();
// a link may name variants: the lists must be there; without an answer, comparing says what is wrong
offerVariants(forms, withKey({})).catch(() => {}).finally(compareLinked);

async function compare(form) {
  if (running) return;
  const body = bodyOf(form);
  const focused = document.activeElement;
  let reading = null;
  const ask = async (first) => {
    const answer = await fetch("compare", {
      method: "POST",
      headers: withKey({ "content-type": "application/json" }),
      body: JSON.stringify(body),
    });
    const found = await answer.json();
    if (answer.ok) {
      reading ??= readingOf(answer.headers);
      return found;
    }
    // a later one that is refused only leaves fewer times to take the median of
    if (first && answer.status === 401) askForKey(form);
    else if (first) showError(found.error, found.request_id);
    return null;
  };
  setRunning(true);
  try {
    const found = await compareRepeatedly(ask);
    if (found === null) return;
    hideError();
    drawComparison(found, body.context, reading);
    offerLink(body);
  } catch (error) {
    // fetch rejects with a TypeError when nobody answers; JSON fails when somebody else did, a proxy perhaps
    const unreachable = error instanceof TypeError || error instanceof SyntaxError;
    showError(unreachable ? "The service does not answer. Your text is still here: try again." : String(error));
  } finally {
    setRunning(false);
    // a disabled button loses the focus
    if (focused !== null && document.activeElement === document.body) focused.focus({ preventScroll: true });
  }
}

function readingOf(headers) {
  const number = (name) => Number(headers.get(name) ?? 0);
  return {
    tokens: number("x-compute-tokens"),
    truncated: number("x-q8bert-truncated"),
    windows: number("x-q8bert-windows"),
  };
}

function bodyOf(form) {
  const value = (name) => form.elements.namedItem(name).value;
  const texts =
    form.dataset.task === "classify"
      ? { inputs: value("text") }
      : { question: value("question"), context: value("context") };
  const variants = chosenVariants(form);
  return variants === null ? texts : { ...texts, variants };
}

function setRunning(on) {
  running = on;
  document.getElementById("results").setAttribute("aria-busy", String(on));
  for (const button of document.querySelectorAll("button.primary")) {
    button.disabled = on;
    button.textContent = on ? "Comparing…" : "Compare";
  }
}

function showError(sentence, requestId) {
  const box = document.getElementById("error");
  box.replaceChildren(make("p", {}, sentence));
  if (requestId) box.append(make("p", {}, `Request ${requestId}`));
  box.hidden = false;
}

function askForKey(form) {
  showError("This service wants an API key. It stays in this tab.");
  const question = keyForm(async () => {
    await offerVariants(forms, withKey({})).catch(() => {});
    compare(form);
  });
  document.getElementById("error").append(question);
  question.querySelector("input").focus();
}

function hideError() {
  document.getElementById("error").hidden = true;
}

/** A link holds the texts behind the #, which browsers keep to themselves. */
function offerLink({ inputs, ...others }) {
  const fields = inputs === undefined ? others : { text: inputs, ...others };
  const link = `#${new URLSearchParams(fields)}`;
  const anchor = document.getElementById("permalink");
  anchor.hidden = link.length > LONGEST_LINK;
  anchor.href = link;
}

/** `#text=...` or `#question=...&context=...`, perhaps with `&variants=...,...`: fill in and compare. */
function compareLinked() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const task = fields.has("text") ? "classify" : fields.has("question") && fields.has("context") ? "qa" : null;
  if (task === null) return;
  const form = forms.find((each) => each.dataset.task === task);
  for (const name of ["text", "question", "context"]) {
    const field = form.elements.namedItem(name);
    if (field !== null) field.value = fields.get(name);
  }
  if (fields.has("variants")) chooseVariants(form, fields.get("variants").split(","));
  selectTab(`tab-${task}`);
  compare(form);
}
