import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { peerProblem, type RuledCertificate } from './certificate-rules.ts';
import { parseSpiffeId } from './spiffe-id.ts';

export interface PeerValidityOptions {
  /** By serial number, hex in small letters. */
  readonly isRevoked: (serial: string) => boolean;
  /** Whether identities of a trust domain may call this server. */
  readonly isTrustedDomain: (trustDomain: string) => boolean;
  readonly now?: () => number;
}

/** Clocks of the mesh may differ by so much. */
const clockToleranceMs = 60_000;

/**
 * The one place that decides whether the peer of a server of Mizzen's own is valid: its certificate is not revoked, within its time, of a trusted domain, and by the rules
 * of ./certificate-rules.ts.
 * OpenSSL has verified the chain before. `follow` each TLS connection, ask `problemOf` for each request, and call `endInvalid` when a certificate is revoked
 * and from time to time: revocation and expiry end connections that are open already.
 */
export class PeerValidity {
  readonly #options: PeerValidityOptions;
  readonly #now: () => number;
  readonly #open: Map<TLSSocket, X509Certificate>;

  constructor(options: PeerValidityOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#open = new Map();
  }

  /** Why a certificate is not valid; undefined: it is. */
  problemOf(certificate: RuledCertificate & Pick<X509Certificate, 'serialNumber' | 'validFrom' | 'validTo' | 'subjectAltName'>): string | undefined {
    if (this.#options.isRevoked(certificate.serialNumber.toLowerCase())) return 'the certificate is revoked';
    const now = this.#now();
    if (Date.parse(certificate.validTo) + clockToleranceMs < now) return `the certificate has expired on ${certificate.validTo}`;
    if (Date.parse(certificate.validFrom) - clockToleranceMs > now) return `the certificate is not valid before ${certificate.validFrom}`;
    const weakness = peerProblem(certificate);
    if (weakness !== undefined) return `the certificate ${weakness}`;
    for (const name of (certificate.subjectAltName ?? '').split(', ')) {
      if (!/^URI:spiffe:/i.test(name)) continue;
      const id = parseSpiffeId(name.slice('URI:'.length));
      if (id === undefined) return 'the certificate has a name that is not a SPIFFE ID';
      if (!this.#options.isTrustedDomain(id.trustDomain)) return `the certificate is of trust domain ${id.trustDomain}, which is not trusted here`;
    }
    return undefined;
  }

  /** Remembers a connection while it is open. Returns what is wrong with its peer: a server that can tell its callers does so, another closes the socket. */
  follow(socket: TLSSocket): string | undefined {
    const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
    if (certificate === undefined || socket.destroyed) return undefined;
    this.#open.set(socket, certificate);
    socket.once('close', () => this.#open.delete(socket));
    return this.problemOf(certificate);
  }

  /** Closes the connections of peers that are not valid any more; `serials`: of these certificates only. Returns how many. */
  endInvalid(serials?: ReadonlySet<string>): number {
    let ended = 0;
    for (const [socket, certificate] of this.#open) {
      if (serials?.has(certificate.serialNumber.toLowerCase()) === false || this.problemOf(certificate) === undefined) continue;
      socket.destroy();
      ended++;
    }
    return ended;
  }
}
