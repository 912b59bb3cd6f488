import { X509Certificate as X509, type X509Certificate } from 'node:crypto';
import type { Http2ServerRequest } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { Code, ConnectError, createContextKey, type HandlerContext } from '@connectrpc/connect';
import { MizzenError, pemCertificates } from '@mizzen/common';
import type { ConnectionGuard } from '@mizzen/common/connection-guard';
import type { PeerValidity } from '@mizzen/common/peer-validity';
import { decodeJwt } from 'jose';
import type { RecentRefusals } from './recent-refusals.ts';
import { type Identity, parseSpiffeUri, spiffeUri } from './spiffe-identity.ts';
import { uriNamesOf } from './subject-alt-names.ts';
import { clockToleranceSeconds } from './token-issuer.ts';
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
  /** Why a certificate that was sent proves nothing, where its chain could not be verified: a token may still prove who calls. */
  readonly unverified?: string | undefined;
  /** Called with the reason when the caller is refused. */
  readonly refused?: (reason: string) => void;
  /** Called when the caller has proved an identity in another way than by a certificate. */
  readonly prove?: (identity: string) => void;
  /** The connection is plain text from this machine. */
  readonly isPlainLoopback: boolean;
}

export const transportPeerKey = createContextKey<TransportPeer>(
  { address: 'unknown', identity: undefined, certificate: undefined, isPlainLoopback: false },
  { description: 'transport peer' },
);

export interface TransportPeerDependencies {
  readonly validity: Pick<PeerValidity, 'problemOf' | 'timeProblemOf'>;
  readonly guard?: Pick<ConnectionGuard, 'prove'> | undefined;
  readonly refusals?: Pick<RecentRefusals, 'add'> | undefined;
  /** The root that signs here, for callers that come from another. */
  readonly authority?: { readonly trustDomain: string; readonly roots: () => string } | undefined;
}

/** Reads the peer of the connection that a request came on. */
export function transportPeerOf(request: Http2ServerRequest, { validity, guard, refusals, authority }: TransportPeerDependencies): TransportPeer {
  const socket = request.stream.session?.socket as TLSSocket | undefined;
  const address = `${socket?.remoteAddress ?? 'unknown'}:${socket?.remotePort ?? 0}`;
  if (!socket?.encrypted) return { address, identity: undefined, certificate: undefined, isPlainLoopback: true };
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
  const sent = certificate ?? socket.getPeerX509Certificate();
  const refused = (reason: string) => refusals?.add(uriNamesOf(sent?.subjectAltName)?.[0], address, reason);
  const problem = certificate && validity.problemOf(certificate);
  if (problem !== undefined) return { address, identity: undefined, certificate: undefined, problem, refused, isPlainLoopback: false };
  const unverified = sent === undefined || certificate !== undefined ? undefined : whyUnverified(sent, String(socket.authorizationError), validity, authority);
  const uris = certificate ? uriNamesOf(certificate.subjectAltName) : [];
  const prove = (identity: string) => void guard?.prove(socket, identity);
  return { address, identity: uris?.length === 1 ? parseSpiffeUri(uris[0]!) : undefined, certificate, unverified, refused, prove, isPlainLoopback: false };
}

/** In words that name the clock or the authority: OpenSSL has only a code for it. */
function whyUnverified(
  sent: X509Certificate,
  code: string,
  validity: Pick<PeerValidity, 'timeProblemOf'>,
  authority: TransportPeerDependencies['authority'],
): string {
  const timeProblem = validity.timeProblemOf(sent);
  if (timeProblem !== undefined) return timeProblem;
  const id = uriNamesOf(sent.subjectAltName)?.[0] ?? 'the caller';
  if (authority === undefined || !id.startsWith(`spiffe://${authority.trustDomain}/`))
    return `the certificate of ${id} is not signed by a root of this mesh (${code})`;
  const roots = pemCertificates(authority.roots()).map((pem) => shortFingerprint(new X509(pem)));
  return `the certificate of ${id} was issued by another authority of the same trust domain ${authority.trustDomain} (issuer ${oneLine(sent.issuer)}; the roots of this control plane are ${roots.join(', ')}). Was the home of the control plane removed or replaced? Restore its folder ca from a backup; or give the proxies the new root certificate and a new token, and restart them`;
}

const shortFingerprint = ({ fingerprint256 }: X509Certificate) => `SHA-256 ${fingerprint256.replaceAll(':', '').slice(0, 16).toLowerCase()}`;
const oneLine = (name: string) => name.replaceAll('\n', ', ').slice(0, 200);

/** When the token ends that `authenticate` has accepted, ms since 1970; undefined: a certificate proves the caller, or the issuer sets no end. */
export function tokenEndOf(context: HandlerContext): number | undefined {
  if (context.values.get(transportPeerKey).identity !== undefined) return undefined;
  const [, token = ''] = (context.requestHeader.get('authorization') ?? '').split(' ');
  try {
    const { exp } = decodeJwt(token);
    return exp === undefined ? undefined : (exp + clockToleranceSeconds) * 1000;
  } catch {
    return undefined;
  }
}

/**
 * Who calls: by client certificate, else by bearer token. Throws ConnectError `unauthenticated` with the reason, so that the sidecar can
 * print what to do.
 */
export async function authenticate(context: HandlerContext, tokens: WorkloadTokens, trustDomain: string, forCertificate = false): Promise<Identity> {
  const peer = context.values.get(transportPeerKey);
  const refuse = (reason: string) => {
    peer.refused?.(reason);
    return new ConnectError(reason, Code.Unauthenticated);
  };
  if (peer.problem !== undefined) throw refuse(peer.problem);
  if (peer.identity) {
    if (peer.identity.trustDomain !== trustDomain)
      throw refuse(`the certificate is of trust domain ${peer.identity.trustDomain}, but this mesh is ${trustDomain}`);
    return peer.identity;
  }
  const [scheme, token] = (context.requestHeader.get('authorization') ?? '').split(' ');
  if (scheme?.toLowerCase() !== 'bearer' || !token) throw refuse(peer.unverified ?? 'neither a client certificate of this mesh nor a bearer token was given');
  try {
    const identity = { trustDomain, ...(await tokens.verify(token, forCertificate)) };
    peer.prove?.(spiffeUri(identity));
    return identity;
  } catch (error) {
    throw refuse(error instanceof MizzenError ? error.message : 'the token could not be checked');
  }
}
