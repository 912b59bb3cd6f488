import { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { type Logger, MizzenError } from '@mizzen/common';
import { isRevoked, type RevokedLeaves } from './leaf-crl.ts';

/** How many certificates are looked at before others have their turn. */
const atOnce = 200;

/** The certificate that a peer has shown, DER; undefined: none. */
export type CertificateOf = () => Buffer | undefined;

/** The connections whose peer has shown a certificate, by the secret that holds the roots which it was verified by: they end when it is revoked. */
export class LivePeers {
  readonly #logger: Logger;
  readonly #peers: Map<string, Map<TLSSocket, CertificateOf>>;

  constructor(logger: Logger) {
    this.#logger = logger;
    this.#peers = new Map();
  }

  add(roots: string, socket: TLSSocket, certificateOf: CertificateOf): void {
    let peers = this.#peers.get(roots);
    if (peers === undefined) {
      peers = new Map();
      this.#peers.set(roots, peers);
    }
    peers.set(socket, certificateOf);
    socket.once('close', () => peers.delete(socket));
  }

  /** Ends the connections to peers whose certificate is revoked. */
  async endRevoked(roots: string, revoked: RevokedLeaves): Promise<void> {
    let looked = 0;
    for (const [socket, certificateOf] of this.#peers.get(roots) ?? []) {
      if (socket.destroyed) continue;
      const raw = certificateOf();
      if (raw !== undefined && isRevoked(raw, revoked)) {
        const certificate = new X509Certificate(raw);
        const place = `${socket.remoteAddress}:${socket.remotePort}`;
        this.#logger.warn('a connection is ended: the certificate of its peer is revoked', {
          peer: place,
          identity: certificate.subjectAltName?.replace(/^URI:/, ''),
          serial: certificate.serialNumber.toLowerCase(),
        });
        socket.destroy(new MizzenError('certificate-revoked', "the peer's certificate has been revoked", place));
      }
      if (++looked % atOnce === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }
}
