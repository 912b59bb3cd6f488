const hidden = '[redacted]';
/** What is shorter would be hidden inside ordinary words. */
const minSecretLength = 4;
const isSecretField = (field: string) => /password|token|secret|credential/i.test(field);

/**
 * What a driver says of itself (log lines, problems, errors of the broker's client library) without the secrets of its component: values that came from a
 * Secret, passwords and tokens by their names, and the user information of URLs. Libraries quote what they cannot read.
 */
export function secretHider(metadata: Readonly<Record<string, string>>, secretFields: readonly string[]): (text: string) => string {
  const secrets = new Set<string>();
  const add = (text: string | undefined) => {
    if (text === undefined || text.length < minSecretLength) return;
    secrets.add(text);
    secrets.add(encodeURIComponent(text));
    try {
      secrets.add(decodeURIComponent(text));
    } catch {
      // Not encoded.
    }
  };
  for (const [field, value] of Object.entries(metadata)) {
    if (secretFields.includes(field) || isSecretField(field)) add(value);
    // A password may hold `@`, `/` and commas; a list of URLs has several.
    for (const url of new Set([value, ...value.split(',')])) {
      const [start, end] = [url.indexOf('//'), url.lastIndexOf('@')];
      const information = start >= 0 && end >= start + 2 ? url.slice(start + 2, end) : undefined;
      add(information);
      add(information?.slice(information.indexOf(':') + 1));
    }
  }
  // The longest first: one may be a part of another.
  const ordered = [...secrets].sort((a, b) => b.length - a.length);
  return (text) => ordered.reduce((shown, secret) => shown.replaceAll(secret, hidden), text);
}
