// Keeps the dashboard fresh: it is drawn by the server, and fetched again after each event and every few seconds.
const root = document.documentElement;
const base = root.dataset.base;
const drawEvery = 2000, drawWithin = 8000, askEvery = 10000, askWithin = 60000, settleFor = 1000, listenAgain = 5000;

const get = (path, within) => fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(within) });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const selecting = () => !document.getSelection().isCollapsed; // somebody copies a command
let drawing = false, again = false, asking = false;

// replace puts what was fetched in the place of what is shown, and leaves the reader in the same place.
function replace(old, fresh) {
  if (!fresh) throw new Error('this is no dashboard');
  if (old.innerHTML === fresh.innerHTML) return;
  const boxes = '.wide, .events';
  const scrolled = [...old.querySelectorAll(boxes)].map((box) => [box.scrollLeft, box.scrollTop]);
  const focus = old.contains(document.activeElement) ? document.activeElement.getAttribute('href') : null;
  old.replaceWith(fresh);
  fresh.querySelectorAll(boxes).forEach((box, i) => { [box.scrollLeft, box.scrollTop] = scrolled[i] ?? [0, 0]; });
  if (focus) [...fresh.querySelectorAll('a')].find((a) => a.getAttribute('href') === focus)?.focus({ preventScroll: true });
}

async function draw() {
  if (drawing) {
    again = true;
    return;
  }
  if (document.hidden || selecting()) return;
  drawing = true;
  try {
    const answer = await get(base, drawWithin);
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const name of ['header', 'main']) replace(document.querySelector(name), page.querySelector(name));
    document.title = page.title;
    root.classList.remove('lost');
    document.getElementById('lost').hidden = true;
  } catch {
    root.classList.add('lost');
    document.getElementById('lost').hidden = false;
  }
  drawing = false;
  if (again) {
    again = false;
    draw();
  }
}

// The answers to questions for which the daemon has to ask other nodes.
async function ask() {
  if (asking || document.hidden) return;
  asking = true;
  await get(`${base}/ask`, askWithin).catch(() => {});
  asking = false;
  draw();
}

// The events, whatever their names are: EventSource would want to know these. Where there are none, the page is drawn
// every few seconds all the same.
async function listen() {
  while (true) {
    const stream = new AbortController();
    try {
      const hide = () => document.hidden && stream.abort(); // a browser has few connections to a server
      document.addEventListener('visibilitychange', hide, { signal: stream.signal });
      const answer = document.hidden ? null : await fetch(root.dataset.events, { headers: { Accept: 'text/event-stream' }, signal: stream.signal });
      if (answer?.status === 404) return;
      const reader = answer?.ok ? answer.body.pipeThrough(new TextDecoderStream()).getReader() : null;
      for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
        if (!part.value.includes('event:')) continue; // a sign of life
        draw();
        setTimeout(ask, settleFor);
      }
    } catch {
      // the daemon went, or the page is hidden
    }
    stream.abort();
    await pause(listenAgain);
  }
}

root.dataset.live = 'yes';
document.addEventListener('visibilitychange', draw);
setInterval(draw, drawEvery);
setInterval(ask, askEvery);
ask();
listen();
