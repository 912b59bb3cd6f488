import { derElements, MizzenError, messageOf, pemBlocks } from '@mizzen/common';

/** Serial numbers of revoked certificates (hex) by who has issued them (the name in DER, hex). */
export type RevokedLeaves = ReadonlyMap<string, ReadonlySet<string>>;

const tags = { integer: 0x02, utcTime: 0x17, generalizedTime: 0x18, sequence: 0x30, context0: 0xa0 } as const;

/**
 * Reads certificate revocation lists (RFC 5280 section 5), PEM. Whoever gives them is trusted already, as with roots: signatures are not looked at. Throws MizzenError with the
 * place.
 */
export function readLeafCrls(pem: string, place: string): RevokedLeaves {
  const revoked = new Map<string, Set<string>>();
  const lists = pemBlocks(pem, 'X509 CRL');
  if (lists.length === 0) throw new MizzenError('invalid-secret', `${place}: crl holds no revocation list`);
  for (const list of lists) {
    try {
      const bytes = Buffer.from(list.replace(/-----[^-]+-----|\s/g, ''), 'base64');
      const fields = derElements(derElements(derElements(bytes)[0]!.content)[0]!.content);
      if (fields[0]!.tag === tags.integer) fields.shift();
      const [, issuer, , ...rest] = fields;
      if (rest[0]?.tag === tags.utcTime || rest[0]?.tag === tags.generalizedTime) rest.shift();
      const name = issuer!.bytes.toString('hex');
      const serials = revoked.get(name) ?? new Set();
      revoked.set(name, serials);
      if (rest[0]?.tag === tags.sequence) for (const entry of derElements(rest[0].content)) serials.add(serialOf(derElements(entry.content)[0]!.content));
    } catch (error) {
      throw new MizzenError('invalid-secret', `${place}: a revocation list cannot be read: ${messageOf(error)}`);
    }
  }
  return revoked;
}

/** `certificate`: DER, which OpenSSL has read already. */
export function isRevoked(certificate: Buffer, revoked: RevokedLeaves): boolean {
  const fields = derElements(derElements(derElements(certificate)[0]!.content)[0]!.content);
  if (fields[0]!.tag === tags.context0) fields.shift();
  const [serial, , issuer] = fields;
  return revoked.get(issuer!.bytes.toString('hex'))?.has(serialOf(serial!.content)) === true;
}

/** Without the zero that says that a number is not negative. */
const serialOf = (integer: Buffer) => integer.toString('hex').replace(/^(00)+(?=..)/, '');

const read = new Map<string, RevokedLeaves>();
const maxRead = 20;

/** The same of lists that were read before: they are asked about at every handshake. */
export function leafCrls(pem: string): RevokedLeaves {
  let found = read.get(pem);
  if (found === undefined) {
    found = readLeafCrls(pem, 'crl');
    if (read.size >= maxRead) read.clear();
    read.set(pem, found);
  }
  return found;
}
