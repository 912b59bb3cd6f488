import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { parseSpiffeId, peerProblem } from '@mizzen/common';

/** Who the peer of a TLS connection has proved to be. Made once per connection. */
export interface PeerIdentity {
  /** The SPIFFE URI, `spiffe://cluster.local/ns/default/sa/reviews`. */
  readonly uri: string;
  readonly subject: string;
  /** SHA-256 of the certificate, lower-case hex. */
  readonly hash: string;
}

/** Why a certificate that OpenSSL has verified is still not good enough. */
export type IdentityProblem = { readonly problem: string };

/**
 * Names in a certificate's subject alternative name, from the text form of node:crypto (`DNS:a, URI:spiffe://...`). Node quotes a name
 * that could be mistaken for two; no name that a mesh uses needs that, so such a certificate is refused as a whole.
 */
export function alternativeNames(
  certificate: X509Certificate,
): { readonly uris: readonly string[]; readonly dns: readonly string[]; readonly ips: readonly string[] } | IdentityProblem {
  const text = certificate.subjectAltName ?? '';
  if (text.includes('"') || text.includes('\0')) return { problem: 'its subject alternative name is malformed' };
  const names = text === '' ? [] : text.split(', ');
  const of = (prefix: string) => names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  return { uris: of('URI:'), dns: of('DNS:'), ips: of('IP Address:') };
}

const clockSkewMs = 60_000;

/** The identity in the certificate of a mesh peer: exactly one SPIFFE URI, and valid now (a minute of clock skew is tolerated). */
export function peerIdentityOf(socket: TLSSocket): PeerIdentity | IdentityProblem {
  const certificate = socket.getPeerX509Certificate();
  if (!certificate) return { problem: 'it sent no certificate' };
  const weakness = peerProblem(certificate);
  if (weakness !== undefined) return { problem: `its certificate ${weakness}` };
  const names = alternativeNames(certificate);
  if ('problem' in names) return names;
  if (names.uris.length !== 1)
    return { problem: names.uris.length === 0 ? 'its certificate names no SPIFFE identity' : 'its certificate names several identities' };
  const uri = names.uris[0]!;
  if ((parseSpiffeId(uri)?.segments.length ?? 0) === 0) return { problem: 'its certificate names no SPIFFE identity' };
  const now = Date.now();
  if (Date.parse(certificate.validTo) + clockSkewMs < now) return { problem: `its certificate expired on ${certificate.validTo}` };
  if (Date.parse(certificate.validFrom) - clockSkewMs > now) return { problem: `its certificate is not valid before ${certificate.validFrom}` };
  return { uri, subject: certificate.subject?.split('\n').join(',') ?? '', hash: certificate.fingerprint256.replaceAll(':', '').toLowerCase() };
}
