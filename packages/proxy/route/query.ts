/** The value of the first query parameter with this name, percent-decoded; undefined when it is absent. */
export function queryParameter(target: string, name: string): string | undefined {
  const start = target.indexOf('?');
  if (start < 0) return undefined;
  for (let at = start + 1; at <= target.length; ) {
    let end = target.indexOf('&', at);
    if (end < 0) end = target.length;
    let equals = target.indexOf('=', at);
    if (equals < 0 || equals > end) equals = end;
    if (decode(target.slice(at, equals)) === name) return decode(target.slice(Math.min(equals + 1, end), end));
    at = end + 1;
  }
  return undefined;
}

function decode(text: string): string {
  if (!text.includes('%') && !text.includes('+')) return text;
  try {
    return decodeURIComponent(text.replaceAll('+', ' '));
  } catch {
    return text; // not an encoding: the text itself is the value
  }
}
