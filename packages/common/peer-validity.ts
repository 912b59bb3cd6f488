import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { peerProblem, type RuledCertificate } from './certificate-rules.ts';
import { timeProblem } from './certificate-time.ts';
import { parseSpiffeId } from './spiffe-id.ts';

export interface PeerValidityOptions {
  /** By serial number, hex in small letters. */
  readonly isRevoked: (serial: string) => boolean;
  /** Whether identities of a trust domain may call this server. */
  readonly isTrustedDomain: (trustDomain: string) => boolean;
  /** For problems; `the clock of this server`. */
  readonly clock?: string | undefined;
  readonly now?: () => number;
}

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
    const problem = this.timeProblemOf(certificate);
    if (problem !== undefined) return problem;
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

  /** Why a certificate is not in its time by the clock of this server. The chain need not have been verified: the problem names the holder that the certificate claims. */
  timeProblemOf({ validFrom, validTo, subjectAltName }: Pick<X509Certificate, 'validFrom' | 'validTo' | 'subjectAltName'>): string | undefined {
    const holder = /(?:^|, )URI:([^,]{1,300})/.exec(subjectAltName ?? '')?.[1];
    const whose = holder === undefined ? 'the certificate' : `the certificate of ${holder}`;
    return timeProblem({ validFrom, validTo }, { whose, clock: this.#options.clock ?? 'the clock of this server', nowMs: this.#now() });
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
