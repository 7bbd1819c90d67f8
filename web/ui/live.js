// Keeps the dashboard fresh: it is drawn by the server, and fetched again every few seconds.
const root = document.documentElement;
const base = root.dataset.base;
const lost = document.getElementById('lost');
const drawEvery = 2000, drawWithin = 8000, askEvery = 10000, askWithin = 60000, holdFor = 10000;

const selecting = () => !document.getSelection().isCollapsed; // somebody copies a command
let drawing = false, asking = false, refused = false;
let drawn = Date.now(); // when what is shown was fetched
let event = document.querySelector('main').dataset.event; // the number of the newest event
let askedAt; // the event at which the other nodes were asked last

function show(isLost) {
  root.classList.toggle('lost', isLost);
  lost.hidden = !isLost;
}

async function get(path, within) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(within) });
  if (answer.status === 401 || answer.status === 403) {
    refused = true; // to go on would be to guess passwords
    lost.textContent = 'This daemon does not take the password any more: reload the page. What is below is what it said last.';
    show(true);
  }
  if (!answer.ok) throw new Error(answer.status);
  return answer;
}

// replace puts what was fetched in the place of what is shown, and leaves the reader in the same place.
function replace(old, fresh) {
  if (old.innerHTML === fresh.innerHTML) return;
  const boxes = '.wide, .events';
  const scrolled = [...old.querySelectorAll(boxes)].map((box) => [box.scrollLeft, box.scrollTop]);
  const focus = old.contains(document.activeElement) ? document.activeElement.getAttribute('href') : null;
  old.replaceWith(fresh);
  fresh.querySelectorAll(boxes).forEach((box, i) => { [box.scrollLeft, box.scrollTop] = scrolled[i] ?? [0, 0]; });
  if (focus) [...fresh.querySelectorAll('a')].find((a) => a.getAttribute('href') === focus)?.focus({ preventScroll: true });
}

// draw fetches the page. What is selected stays for a while, and no longer: it would be taken for the present.
async function draw() {
  if (drawing || refused || document.hidden) return;
  drawing = true;
  if (Date.now() - drawn > 2 * holdFor) root.classList.add('lost'); // nobody looked for long: what is shown is old until the answer is there
  try {
    const page = new DOMParser().parseFromString(await (await get(base, drawWithin)).text(), 'text/html');
    event = page.querySelector('main').dataset.event;
    if (!selecting() || Date.now() - drawn > holdFor) {
      for (const name of ['header', 'main']) replace(document.querySelector(name), page.querySelector(name));
      document.title = page.title;
      drawn = Date.now();
    }
    show(false);
  } catch {
    show(true);
  }
  drawing = false;
  if (event !== askedAt) ask();
}

// ask has the daemon put the questions for which it has to ask other nodes.
async function ask() {
  if (asking || refused || document.hidden) return;
  asking = true;
  askedAt = event;
  await get(`${base}/ask`, askWithin).catch(() => {});
  asking = false;
  draw();
}

root.dataset.live = 'yes';
document.addEventListener('visibilitychange', draw);
setInterval(draw, drawEvery);
setInterval(ask, askEvery);
ask();
