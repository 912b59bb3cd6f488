/** The blocks of PEM with this label in a text (RFC 7468), each whole; what stands between them is left out. */
export function pemBlocks(text: string, label: 'CERTIFICATE' | 'X509 CRL'): string[] {
  const begin = `-----BEGIN ${label}-----`;
  const end = `-----END ${label}-----`;
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

/** The certificates in a text, each in PEM form. */
export const pemCertificates = (text: string): string[] => pemBlocks(text, 'CERTIFICATE');
