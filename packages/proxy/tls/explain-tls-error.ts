import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { timeProblem } from '@mizzen/common/certificate-time';
import { alternativeNames } from './peer-identity.ts';

/** What the clock of this machine has against a certificate, with its holder; undefined: nothing. */
export function certificateTimeProblem(certificate: X509Certificate, nowMs = Date.now()): string | undefined {
  const names = alternativeNames(certificate);
  const holder = 'problem' in names ? undefined : (names.uris[0] ?? names.dns[0]);
  const whose = `the certificate of ${holder ?? certificate.subject?.split('\n').join(',') ?? 'an unnamed holder'}`;
  return timeProblem(certificate, { whose, clock: 'the clock of this machine', nowMs, toleranceMs: 0 });
}

/** Why a handshake failed, in words that say whose fault it was. */
export function explainTlsError(error: Error, socket: Pick<TLSSocket, 'authorizationError'>): string {
  // Node.js closes the connection of a client whose certificate is not accepted, and then reports only that it was closed.
  const code = String(socket.authorizationError ?? (error as NodeJS.ErrnoException).code ?? '');
  if (/CERT_SIGNATURE_FAILURE|UNABLE_TO_VERIFY|SELF_SIGNED|UNABLE_TO_GET_ISSUER/i.test(code))
    return `the peer's certificate is not signed by a root of this mesh (${code})`;
  if (/CERT_HAS_EXPIRED/i.test(code)) return "the peer's certificate has expired, by the clock of this machine";
  if (/CERT_NOT_YET_VALID/i.test(code)) return "the peer's certificate is not valid yet, by the clock of this machine";
  if (/PEER_DID_NOT_RETURN/i.test(code)) return 'the peer sent no certificate';
  return `${error.message.split('\n')[0]!.slice(0, 200)}${code ? ` (${code})` : ''}`;
}
