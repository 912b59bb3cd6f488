/**
 * Credentials in a query do not belong in logs (RFC 6750 section 5.3, RFC 9700 section 4.3.2): their values are replaced before a line is made,
 * for names that are known to hold them and for those that the configuration reads credentials from.
 */
const wellKnown = new Set([
  ...['access_token', 'id_token', 'refresh_token', 'id_token_hint', 'token', 'jwt', 'client_secret', 'client_assertion', 'password', 'secret'],
  ...['api_key', 'apikey', 'api-key', 'x-api-key', 'x_api_key', 'authorization', 'x-amz-signature', 'x-amz-security-token', 'x-goog-signature', 'sig'],
]);

/** The target as logs may show it. `configured`: further names that hold credentials. */
export function redactQuery(target: string, configured: readonly string[]): string {
  const cut = target.indexOf('?');
  if (cut < 0) return target;
  const isSecret = (name: string) => wellKnown.has(name.toLowerCase()) || configured.some((other) => other.toLowerCase() === name.toLowerCase());
  const parts = target.slice(cut + 1).split(/([&;])/);
  let isChanged = false;
  for (const [i, part] of parts.entries()) {
    const equals = part.indexOf('=');
    if (equals < 0 || !isSecret(decoded(part.slice(0, equals)).trim())) continue;
    parts[i] = `${part.slice(0, equals)}=***`;
    isChanged = true;
  }
  return isChanged ? target.slice(0, cut + 1) + parts.join('') : target;
}

function decoded(text: string): string {
  return text.replaceAll('+', ' ').replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}
