import { escapedSubject, verifiedValue } from '../message/header-bytes.ts';
import {
  foldedName,
  isAlias,
  isAlwaysOwned,
  isConsumerName,
  isMeshName,
  isOriginName,
  isOtherMizzenName,
  noOwnedHeaderRules,
  type OwnedHeaderRules,
} from '../message/owned-headers.ts';
import type { RequestHead } from '../message/request-head.ts';
import { type PeerMetadata, peerMetadataHeader, peerMetadataIdHeader, unknownPeer } from '../telemetry/peer-metadata.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Client } from './downstream.ts';
import { requestId } from './request-id.ts';

const requestIdHeader = 'x-request-id';
const forwardedForHeader = 'x-forwarded-for';
const forwardedCertHeader = 'x-forwarded-client-cert';
const forwardedProtoHeader = 'x-forwarded-proto';

/**
 * Where a request comes from, which decides what its headers may say (Envoy, "HTTP header sanitizing"):
 * `mesh`, a workload with a certificate of the mesh; `application`, the proxy's own; `unknown`, a listener without a traffic direction;
 * `outside`, anything else. A client certificate does not make a client of a gateway a member of the mesh.
 */
type Source = 'mesh' | 'application' | 'unknown' | 'outside';

function sourceOf(client: Client, settings: ConnectionSettings): Source {
  switch (settings.direction) {
    case 'gateway':
      return 'outside';
    case 'inbound':
      return client.peer === undefined ? 'outside' : 'mesh';
    case 'outbound':
      return settings.isFromApplication ? 'application' : 'unknown';
  }
}

/**
 * Sets the headers that describe this hop to the next one, and removes those by which a peer could pose as another or claim another
 * origin, in every spelling (`message/owned-headers.ts`). Returns what the peer says about itself, for metrics.
 */
export function applyForwardingHeaders(head: RequestHead, client: Client, settings: ConnectionSettings): PeerMetadata {
  const { headers } = head;
  const source = sourceOf(client, settings);
  if (headers.hasAliases) headers.removeWhere(isAliasOfOwned);
  if (headers.hasWatchedNames) {
    if (source === 'outside') headers.removeWhere(isRemovedOutside);
    else if (source === 'application') headers.removeWhere(isRemovedFromApplication);
  }
  if (client.peer !== undefined && source === 'mesh') removeUnentitled(head, client.peer.uri, settings.ownedHeaders);

  if (!settings.preservesRequestId || !headers.has(requestIdHeader)) headers.setVerified(requestIdHeader, requestId());
  if (settings.usesRemoteAddress || source === 'outside') headers.setVerified(forwardedForHeader, client.info.remoteAddress);
  if (source === 'outside' || !headers.has(forwardedProtoHeader))
    headers.setVerified(forwardedProtoHeader, settings.isTls && settings.direction === 'gateway' ? 'https' : 'http');
  applyForwardedCert(head, client, settings);

  if (!headers.hasWatchedNames) return unknownPeer;
  let peer = unknownPeer;
  if (source === 'mesh') peer = settings.context.peers.read(headers.get(peerMetadataHeader));
  headers.remove(peerMetadataHeader);
  headers.remove(peerMetadataIdHeader);
  return peer;
}

/** What a caller with a certificate of the mesh is not entitled to say: whose request it is, and where it comes from. */
function removeUnentitled({ headers }: RequestHead, uri: string, rules: OwnedHeaderRules | undefined): void {
  const { claimHeaders } = rules ?? noOwnedHeaderRules;
  if (!headers.hasWatchedNames && claimHeaders.length === 0) return;
  if (rules?.maySayConsumer(uri) !== true) {
    if (headers.hasWatchedNames) headers.removeWhere(isConsumerName);
    for (const name of claimHeaders) headers.remove(name);
  }
  if (!headers.hasWatchedNames) return;
  if (rules?.maySayPublisher(uri) !== true) headers.removeWhere(isOtherMizzenName);
  if (rules === undefined || rules.maySayOrigin(uri)) return;
  headers.remove(forwardedForHeader);
  headers.remove(forwardedCertHeader);
}

const isAliasOfOwned = (name: string): boolean => isAlias(name) && isAlwaysOwned(foldedName(name));

/** What steers the mesh, says who calls, or names an origin. The certificate's header has a rule of its own. */
const isRemovedOutside = (name: string): boolean => isMeshName(name) || (isOriginName(name) && name !== forwardedCertHeader);

/** An application may say what it knows of its own clients (X-Forwarded-Proto, say), but not steer the mesh or choose the address that policies decide on. */
const isRemovedFromApplication = (name: string): boolean => isMeshName(name) || name === forwardedForHeader;

/** x-forwarded-client-cert by the connection manager's rule (Envoy, "HTTP header manipulation"). */
function applyForwardedCert(head: RequestHead, client: Client, settings: ConnectionSettings): void {
  const { headers } = head;
  switch (settings.forwardClientCert) {
    case 'forwardOnly':
      if (client.peer === undefined) headers.remove(forwardedCertHeader);
      return;
    case 'appendForward': {
      if (client.peer === undefined) return headers.remove(forwardedCertHeader);
      const before = headers.getJoined(forwardedCertHeader);
      headers.setVerified(forwardedCertHeader, before === undefined ? certElement(client, settings) : `${before},${certElement(client, settings)}`);
      return;
    }
    case 'sanitizeSet':
      if (client.peer === undefined) headers.remove(forwardedCertHeader);
      else headers.setVerified(forwardedCertHeader, certElement(client, settings));
      return;
    case 'sanitize':
      headers.remove(forwardedCertHeader);
  }
}

function certElement(client: Client, settings: ConnectionSettings): string {
  if (client.forwardedCert === undefined) {
    const peer = client.peer!;
    client.forwardedCert = verifiedValue(`By=${settings.context.self.principal};Hash=${peer.hash};Subject="${escapedSubject(peer.subject)}";URI=${peer.uri}`);
  }
  return client.forwardedCert;
}
