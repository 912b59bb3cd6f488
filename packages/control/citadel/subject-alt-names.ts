/**
 * The URI names in a certificate's subject alternative name, from the text form that node:crypto gives (`DNS:a, URI:spiffe://...`).
 * Node quotes a name (as JSON) that could be mistaken for two; no name of ours needs that, so a quoted one makes the whole list
 * undefined, and the caller refuses the certificate.
 */
export function uriNamesOf(subjectAltName: string | undefined): string[] | undefined {
  if (!subjectAltName) return [];
  if (subjectAltName.includes('"') || subjectAltName.includes('\0')) return undefined;
  return subjectAltName
    .split(', ')
    .filter((name) => name.startsWith('URI:'))
    .map((name) => name.slice(4));
}
