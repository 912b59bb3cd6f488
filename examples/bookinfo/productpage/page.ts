import type { Answer } from './server.ts';

interface Review {
  readonly reviewer: string;
  readonly text: string;
  readonly rating?: { readonly stars?: number; readonly color?: string; readonly error?: string };
}

const escapeHtml = (value: unknown) => String(value).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

/** The page as HTML. Everything that came from elsewhere is escaped. */
export function renderPage(
  product: { readonly title: string; readonly description: string },
  details: Answer,
  reviews: Answer,
  copies: number | undefined,
  user: string | undefined,
): string {
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Simple Bookstore App</title><style>${style}</style><script src="/static/feed.js" defer></script></head>
<body>
<header><strong>BookInfo Sample</strong>${
    user === undefined
      ? '<form method="post" action="/login"><input name="username" placeholder="user name (try jason)" aria-label="user name" required><button>Sign in</button></form>'
      : `<form method="post" action="/logout"><span>signed in as <b>${escapeHtml(user)}</b></span><button>Sign out</button></form>`
  }</header>
<main>
<h1>${escapeHtml(product.title)}</h1>
<p class="summary">${escapeHtml(product.description)}</p>
<div class="columns">
<section><h2>Book Details</h2>${renderDetails(details)}${renderStock(copies)}</section>
<section><h2>Book Reviews</h2>${renderReviews(reviews)}</section>
</div>
</main>
</body>
</html>
`;
}

function renderDetails(answer: Answer): string {
  if (answer.status !== 200) return '<p class="error">Sorry, product details are currently unavailable for this book.</p>';
  const entries = Object.entries(answer.body as Record<string, unknown>).filter(([name]) => name !== 'id');
  return `<dl>${entries.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('')}</dl>`;
}

function renderStock(copies: number | undefined): string {
  if (copies === undefined) return '<p class="error">Sorry, nobody can say how many copies are left.</p>';
  return `<p class="stock"><b id="left">${copies}</b> copies left <span id="live" class="served">(when the page was made)</span></p>`;
}

/** Keeps the number of copies up to date; when the feed ends it tries again. */
export const feedScript = `
const left = document.getElementById('left');
const live = document.getElementById('live');
function follow() {
  const feed = new WebSocket(location.origin.replace(/^http/, 'ws') + '/api/v1/products/0/feed');
  feed.onmessage = ({ data }) => {
    left.textContent = JSON.parse(data).left;
    live.textContent = '(live)';
  };
  feed.onclose = () => {
    live.textContent = '(the feed was interrupted)';
    setTimeout(follow, 2000);
  };
}
if (left) follow();
`;

function renderReviews(answer: Answer): string {
  if (answer.status !== 200) return '<p class="error">Sorry, product reviews are currently unavailable for this book.</p>';
  const { reviews, version } = answer.body as { readonly reviews: readonly Review[]; readonly version: string };
  return `${reviews.map((review) => `<blockquote><p>${escapeHtml(review.text)}</p><footer>${escapeHtml(review.reviewer)}${renderRating(review)}</footer></blockquote>`).join('')}<p class="served">Reviews served by: reviews-${escapeHtml(version)}</p>`;
}

function renderRating({ rating }: Review): string {
  if (rating === undefined) return '';
  if (rating.stars === undefined) return `<p class="error">${escapeHtml(rating.error)}</p>`;
  const stars = Math.min(5, Math.max(0, rating.stars));
  return `<div class="stars ${rating.color === 'red' ? 'red' : 'black'}" title="${stars} of 5">${'★'.repeat(stars)}${'☆'.repeat(5 - stars)}</div>`;
}

const style = `
:root{font-family:system-ui,sans-serif;color:#1c2733;background:#f5f7fa;line-height:1.5}
body{margin:0}
header{display:flex;justify-content:space-between;align-items:center;flex-wrap:wrap;gap:.5rem;background:#12395b;color:#fff;padding:.75rem 1.5rem}
header form{display:flex;gap:.5rem;align-items:center}
input,button{font:inherit;padding:.3rem .6rem;border-radius:.3rem;border:1px solid #9db3c7}
button{background:#fff;color:#12395b;cursor:pointer}
main{max-width:64rem;margin:0 auto;padding:1.5rem}
h1{text-align:center;margin:.5rem 0}
.summary{max-width:46rem;margin:0 auto 1.5rem;color:#46586a}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1.5rem}
section{background:#fff;border:1px solid #dde5ec;border-radius:.5rem;padding:1rem 1.25rem}
h2{font-size:1.1rem;margin:0 0 .75rem;color:#12395b}
dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1rem;margin:0}
dt{font-weight:600}dd{margin:0}
blockquote{margin:0 0 1rem;border-left:3px solid #dde5ec;padding-left:1rem}
footer{color:#46586a}
.stars{font-size:1.4rem;letter-spacing:.1rem}.red{color:#c62828}.black{color:#111}
.stock{margin:1rem 0 0;font-size:1.1rem}.stock .served{display:inline}
.error{color:#b00020}.served{color:#708394;font-size:.9rem;margin:0}
`;
