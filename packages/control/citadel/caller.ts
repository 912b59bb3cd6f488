import type { X509Certificate } from 'node:crypto';
import type { Http2ServerRequest } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { Code, ConnectError, createContextKey, type HandlerContext } from '@connectrpc/connect';
import { MizzenError } from '@mizzen/common';
import type { ConnectionGuard } from '@mizzen/common/connection-guard';
import type { PeerValidity } from '@mizzen/common/peer-validity';
import { type Identity, parseSpiffeUri, spiffeUri } from './spiffe-identity.ts';
import { uriNamesOf } from './subject-alt-names.ts';
import type { WorkloadTokens } from './workload-tokens.ts';

/** What the transport knows of the caller of an RPC. */
export interface TransportPeer {
  /** `address:port`, for messages. */
  readonly address: string;
  /** The identity in a client certificate that the mesh's roots have signed. */
  readonly identity: Identity | undefined;
  /** What proves it. */
  readonly certificate: X509Certificate | undefined;
  /** Why it proves nothing any more. */
  readonly problem?: string;
  /** Called when the caller has proved an identity in another way than by a certificate. */
  readonly prove?: (identity: string) => void;
  /** The connection is plain text from this machine. */
  readonly isPlainLoopback: boolean;
}

export const transportPeerKey = createContextKey<TransportPeer>(
  { address: 'unknown', identity: undefined, certificate: undefined, isPlainLoopback: false },
  { description: 'transport peer' },
);

/** Reads the peer of the connection that a request came on. */
export function transportPeerOf(request: Http2ServerRequest, validity: Pick<PeerValidity, 'problemOf'>, guard?: Pick<ConnectionGuard, 'prove'>): TransportPeer {
  const socket = request.stream.session?.socket as TLSSocket | undefined;
  const address = `${socket?.remoteAddress ?? 'unknown'}:${socket?.remotePort ?? 0}`;
  if (!socket?.encrypted) return { address, identity: undefined, certificate: undefined, isPlainLoopback: true };
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
  const problem = certificate && validity.problemOf(certificate);
  if (problem !== undefined) return { address, identity: undefined, certificate: undefined, problem, isPlainLoopback: false };
  const uris = certificate ? uriNamesOf(certificate.subjectAltName) : [];
  const prove = (identity: string) => void guard?.prove(socket, identity);
  return { address, identity: uris?.length === 1 ? parseSpiffeUri(uris[0]!) : undefined, certificate, prove, isPlainLoopback: false };
}

/**
 * Who calls: by client certificate, else by bearer token. Throws ConnectError `unauthenticated` with the reason, so that the sidecar can
 * print what to do.
 */
export async function authenticate(context: HandlerContext, tokens: WorkloadTokens, trustDomain: string, forCertificate = false): Promise<Identity> {
  const peer = context.values.get(transportPeerKey);
  if (peer.problem !== undefined) throw new ConnectError(peer.problem, Code.Unauthenticated);
  if (peer.identity) {
    if (peer.identity.trustDomain !== trustDomain)
      throw new ConnectError(`the certificate is of trust domain ${peer.identity.trustDomain}, but this mesh is ${trustDomain}`, Code.Unauthenticated);
    return peer.identity;
  }
  const [scheme, token] = (context.requestHeader.get('authorization') ?? '').split(' ');
  if (scheme?.toLowerCase() !== 'bearer' || !token)
    throw new ConnectError('neither a client certificate of this mesh nor a bearer token was given', Code.Unauthenticated);
  try {
    const identity = { trustDomain, ...(await tokens.verify(token, forCertificate)) };
    peer.prove?.(spiffeUri(identity));
    return identity;
  } catch (error) {
    throw new ConnectError(error instanceof MizzenError ? error.message : 'the token could not be checked', Code.Unauthenticated);
  }
}
