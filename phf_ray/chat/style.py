"""How the page looks. Colours are those of Gradio's theme, which follows the browser to light or dark."""

CSS = """
.phf-chat { height: min(62vh, 46rem); overflow-y: auto; display: flex; flex-direction: column-reverse;
  border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px; }
.phf-turns { display: flex; flex-direction: column; gap: 10px; margin-bottom: auto !important; }
#transcript .html-container, #status .html-container { padding: 0; }
.phf-empty { margin: auto; opacity: .7; }
.phf-message { align-self: flex-end; max-width: 80%; padding: 8px 12px; border-radius: 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--color-accent-soft); color: var(--body-text-color); }
.phf-answers { display: grid; gap: 10px; }
.phf-of-2 { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.phf-answer { min-width: 0; padding: 8px 12px; border-radius: 12px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.phf-kept { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.phf-head { display: flex; flex-wrap: wrap; gap: 2px 10px; justify-content: space-between; font-size: .8em;
  opacity: .85; margin-bottom: 4px; overflow-wrap: anywhere; }
.phf-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.phf-text mark { position: relative; color: inherit; border-radius: 3px; cursor: help;
  background: rgba(235, 95, 0, var(--depth, 0)); outline-offset: 1px; }
.phf-text mark.phf-unscored { background: none; text-decoration: underline dotted; }
.phf-text mark:hover, .phf-text mark:focus { outline: 1px solid currentColor; }
.phf-text mark:hover::after, .phf-text mark:focus::after { content: attr(data-score); position: absolute; left: 0;
  top: 100%; z-index: 5; padding: 2px 8px; border-radius: 6px; font-size: .8rem; line-height: 1.4; max-width: 15rem;
  width: max-content; white-space: normal; background: #1f2430; color: #fff; border: 1px solid #8a92a3; }
.phf-problem { margin: 6px 0 0; font-size: .85em; overflow-wrap: anywhere; color: var(--error-text-color, #b91c1c); }
.phf-verdict { margin: 0; text-align: center; font-size: .85em; opacity: .85; }
.phf-legend { margin: 0; font-size: .8em; opacity: .85; }
.phf-legend i { display: inline-block; width: 6rem; height: .7em; border-radius: 3px; vertical-align: middle;
  background: linear-gradient(90deg, rgba(235, 95, 0, 0), rgba(235, 95, 0, .6)); border: 1px solid
  var(--border-color-primary); }
.phf-status { min-height: 1.5em; font-size: .9em; overflow-wrap: anywhere; }
"""

DOWNLOAD = """(text) => {
  if (!text) { return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
  link.download = "conversation.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
