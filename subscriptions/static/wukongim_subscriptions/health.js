"use strict";
// Refreshes what the page shows every few seconds and says how old it is. What could not be
// refreshed is marked as old, and its state is shown no more: it may have been "healthy".
(function () {
    const PERIOD = 3000;  // milliseconds: nodes describe themselves every two seconds
    const PATIENCE = 10000;
    const shown = document.getElementById("health");
    const stale = document.getElementById("health-stale");
    const since = document.getElementById("health-since");
    const age = document.getElementById("health-age");
    let updated = performance.now();
    let failed = false;

    async function refresh() {
        try {
            // A redirect is the way to the login: no answer either.
            const signal = AbortSignal.timeout(PATIENCE - PERIOD);
            const answer = await fetch(shown.dataset.url, {signal, redirect: "error"});
            if (!answer.ok) {
                throw new Error(answer.status);
            }
            show(await answer.text());
            updated = performance.now();
            failed = false;
        } catch (error) {
            failed = true;
        }
        tell();
        setTimeout(refresh, PERIOD);
    }

    function show(html) {
        const focused = shown.contains(document.activeElement) && document.activeElement.href;
        shown.innerHTML = html;
        const links = Array.from(shown.querySelectorAll("a"));
        links.find((link) => focused && link.href === focused)?.focus();
    }

    function tell() {
        const waited = performance.now() - updated;
        const isStale = failed || waited > PATIENCE;
        shown.classList.toggle("health-is-stale", isStale);
        stale.hidden = !isStale;
        since.textContent = shown.querySelector("[data-at]").dataset.at;
        age.textContent = age.dataset.updated.replace("%s", Math.floor(waited / 1000));
    }

    tell();
    setInterval(tell, 1000);
    setTimeout(refresh, PERIOD);
}());
