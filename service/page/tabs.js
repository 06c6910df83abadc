// Tabs as in WAI-ARIA's pattern: arrows, Home and End move and select, Tab leads into the panel.

/** Wire a tablist; returns `select(tab id)`. `onChange` is called when another tab was chosen by hand. */
export function wireTabs(list, onChange) {
  const tabs = [...list.querySelectorAll('[role="tab"]')];

  function select(chosen) {
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
  }

  function choose(tab) {
    if (tab.getAttribute("aria-selected") !== "true") onChange();
    select(tab);
    tab.focus();
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) choose(tab);
  });
  list.addEventListener("keydown", (event) => {
    const place = tabs.indexOf(document.activeElement);
    const steps = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 };
    if (place < 0 || !(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(tabs.at(steps[event.key] % tabs.length));
  });
  return (id) => select(document.getElementById(id));
}
