const begin = '-----BEGIN CERTIFICATE-----';
const end = '-----END CERTIFICATE-----';

/** The certificates in a text, each in PEM form; what stands between them is left out. */
export function pemCertificates(text: string): string[] {
  const found: string[] = [];
  // Not by a regular expression: one begins again at every BEGIN without an END.
  for (let start = text.indexOf(begin); start >= 0; ) {
    const stop = text.indexOf(end, start);
    if (stop < 0) break;
    found.push(text.slice(start, stop + end.length));
    start = text.indexOf(begin, stop);
  }
  return found;
}
