// Search, and tables on narrow screens. tools/pages.py puts this script and the box for searching into every page.
(() => {
  const up = document.currentScript.dataset.up;
  const plain = text => text.toLowerCase();
  const words = text => plain(text).split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
  const chinese = text => /\p{Script=Han}/u.test(text);
  // "oscillates", "oscillating" and "oscillation" have one stem.
  const stem = word => word.replace(/(ations?|ates?|ating|ated|ions?|ings?|ed|es|s)$/, "");
  const GUIDES = /^(tutorials|guide|zh|policies)\/|^(index|install|results|glossary|all_commands)\.html/;

  // How well a name fits: the whole, a word of it, its beginning, a part at the beginning of a word, any part.
  const fits = (name, asked) => Math.max(...name.split(" · ").map(part => fitting(part, asked)));
  const fitting = (name, asked) => {
    const text = plain(name), at = text.indexOf(asked);
    if (text === asked) return 100;
    if (words(name).includes(asked)) return 70;
    if (at === 0) return 50;
    if (at < 0) return 0;
    return /[\p{L}\p{N}]/u.test(text[at - 1]) ? 12 : 30;
  };
  // What one word is worth in an entry: in the heading, in the title of the page, in the text.
  const worth = ([, title, , heading, text], word) => Math.max(fits(heading, word), 0.6 * fits(title, word), 0.2 * fits(text.slice(0, 400), word),
    plain(text).includes(word) ? 2 : 0);
  const score = (entry, asked) => {
    const [page, , place, heading, text] = entry, whole = fits(heading, asked.join(" "));
    let sum = whole, named = whole >= 70 || (chinese(heading) && whole >= 50);
    const inHeading = asked.filter(word => fits(heading, word) >= 50 || (word.length > 4 && fits(heading, stem(word)) >= 30)).length;
    for (const word of asked) {
      const short = stem(word), best = Math.max(worth(entry, word), short.length > 2 && short !== word ? 0.8 * worth(entry, short) : 0);
      if (!best) return 0;
      sum += best / asked.length;
    }
    named ||= asked.length > 1 && inHeading === asked.length;
    if (page === "glossary.html") sum += named ? 60 : place && plain(heading + " " + text).includes(asked[0]) ? 4 : 0;
    if (page.startsWith("zh/")) sum += chinese(asked.join("")) ? 15 : -15;
    if (GUIDES.test(page)) sum += 8;  // what explains, before what lists functions
    return sum + (place ? 0 : whole === 100 ? 5 : -1);  // a page of that very name, before a section
  };
  // Where nothing has the letters: headings that share most pairs of letters.
  const pairs = text => new Set([...plain(text)].slice(1).map((letter, k) => text[k].toLowerCase() + letter));
  const alike = (a, b) => {
    const x = pairs(a), y = pairs(b);
    return 2 * [...x].filter(pair => y.has(pair)).length / (x.size + y.size || 1);
  };
  const search = query => {
    const asked = query.split(/\s+/).map(plain).filter(Boolean), index = window.atomrlIndex || [];
    const ranked = by => index.map(entry => [by(entry), entry]).filter(([value]) => value > 0)
      .sort((a, b) => b[0] - a[0]).slice(0, 20).map(([, entry]) => entry);
    const found = ranked(entry => score(entry, asked));
    return found.length ? found : ranked(entry => Math.max(0, alike(entry[3], query) - 0.45));
  };
  const loaded = () => window.atomrlIndex ? Promise.resolve() : new Promise(done => document.head.append(
    Object.assign(document.createElement("script"), {src: up + "search.js", onload: done, onerror: done})));

  const said = (parent, kind, text) => parent.append(Object.assign(document.createElement("div"), {className: kind, textContent: text}));
  const shown = ([page, title, place, heading, text], asked) => {
    const link = Object.assign(document.createElement("a"), {className: "dropdown-item", href: up + page + (place ? "#" + encodeURIComponent(place) : "")});
    said(link, "atomrl-heading", heading);
    if (title !== heading) said(link, "atomrl-page", title);
    const at = Math.max(0, plain(text).indexOf(asked) - 40);
    said(link, "atomrl-text", (at ? "…" : "") + text.slice(at, at + 150));
    return link;
  };
  for (const box of document.querySelectorAll(".atomrl-search")) {
    const input = box.querySelector("input"), list = box.querySelector(".atomrl-found");
    const look = async () => {
      const query = input.value.trim();
      list.classList.toggle("show", query.length > 1);
      if (query.length < 2) return;
      await loaded();
      if (query !== input.value.trim()) return;
      const found = search(query), asked = plain(query.split(/\s+/)[0]);
      list.replaceChildren(...found.map(entry => shown(entry, asked)));
      list.dataset.asked = query;
      if (!found.length) said(list, "atomrl-text", "Nothing found. The glossary and the page of all settings list every name.");
    };
    input.addEventListener("input", look);
    input.addEventListener("focus", look);
    box.addEventListener("keydown", event => {
      const items = [input, ...list.querySelectorAll("a")], here = items.indexOf(document.activeElement);
      const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
      if (step) { event.preventDefault(); (items[here + step] || input).focus(); }
      if (event.key === "Enter" && here === 0 && items[1]) items[1].click();
      if (event.key === "Escape") { list.classList.remove("show"); input.blur(); }
    });
    document.addEventListener("click", event => { if (!box.contains(event.target)) list.classList.remove("show"); });
    document.addEventListener("keydown", event => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); input.focus(); }
    });
  }

  // Printed text in columns is scrolled on a narrow screen: columns that are wrapped cannot be read.
  for (const text of document.querySelectorAll("main pre:not(.python)"))
    text.classList.toggle("atomrl-columns", (text.textContent.match(/\S {3,}\S/g) || []).length > 2);

  // A table of sentences that is wider than a narrow screen becomes a card for each row, with the head beside each cell.
  const tables = [...document.querySelectorAll("main table")].filter(table => table.tHead && table.tHead.rows.length === 1);
  for (const table of tables) {
    const head = [...table.tHead.rows[0].cells].map(cell => cell.textContent.trim());
    table.dataset.words = [...table.tBodies].some(body => [...body.rows].some(row => [...row.cells].some(cell => cell.textContent.length > 40)));
    for (const body of table.tBodies) for (const row of body.rows)
      [...row.cells].forEach((cell, k) => { if (head[k]) cell.dataset.head = head[k]; });
  }
  // Numbers, intervals and dates stay on one line where the table has room for them.
  const number = /^[\s\d.,+\-−–—±×%*/()[\]e]+(to[\s\d.,+\-−()]+)?$/;
  for (const table of tables) {
    for (const cell of table.querySelectorAll("td")) cell.classList.toggle("atomrl-number", cell.textContent.length < 30 && number.test(cell.textContent));
  }
  const narrow = window.matchMedia("(max-width: 640px)");
  const lay = () => tables.forEach(table => {
    table.classList.remove("atomrl-cards", "atomrl-wrapped");
    table.classList.toggle("atomrl-wrapped", table.scrollWidth > table.parentElement.clientWidth + 1);
    const wide = table.scrollWidth > table.parentElement.clientWidth + 1;
    table.classList.toggle("atomrl-cards", narrow.matches && wide && table.dataset.words === "true");
  });
  lay();
  narrow.addEventListener("change", lay);
})();
