import { isInternalName } from '../message/header-list.ts';
import type { RequestHead } from '../message/request-head.ts';
import { type PeerMetadata, peerMetadataHeader, peerMetadataIdHeader, unknownPeer } from '../telemetry/peer-metadata.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Client } from './downstream.ts';
import { requestId } from './request-id.ts';

const requestIdHeader = 'x-request-id';
const forwardedForHeader = 'x-forwarded-for';
const forwardedCertHeader = 'x-forwarded-client-cert';
const forwardedProtoHeader = 'x-forwarded-proto';

/** A peer whose word about earlier hops is taken: a mesh workload that has proved who it is, or the proxy's own application. */
function isTrusted(client: Client, settings: ConnectionSettings): boolean {
  return client.peer !== undefined || settings.direction === 'outbound';
}

/**
 * Sets the headers that tell the next hop about this one, and takes away those by which a peer could pretend to be somebody or to have
 * come from somewhere. Returns who the peer says it is, for metrics.
 */
export function applyForwardingHeaders(head: RequestHead, client: Client, settings: ConnectionSettings): PeerMetadata {
  const { headers } = head;
  const trusted = isTrusted(client, settings);
  if (!trusted && headers.hasInternalNames) removeInternalHeaders(head);

  if (!settings.preservesRequestId || !headers.has(requestIdHeader)) headers.set(requestIdHeader, requestId());
  if (settings.usesRemoteAddress || !trusted) headers.set(forwardedForHeader, client.info.remoteAddress);
  if (!trusted || !headers.has(forwardedProtoHeader)) headers.set(forwardedProtoHeader, settings.isTls && settings.direction === 'gateway' ? 'https' : 'http');
  applyForwardedCert(head, client, settings);

  if (!headers.hasInternalNames) return unknownPeer;
  let peer = unknownPeer;
  if (settings.direction === 'inbound' && client.peer !== undefined) peer = settings.context.peers.read(headers.get(peerMetadataHeader));
  headers.remove(peerMetadataHeader);
  headers.remove(peerMetadataIdHeader);
  return peer;
}

/** Envoy's internal headers steer retries and timeouts, ours say who calls or publishes; from outside they would steer the mesh, or lie to it. */
function removeInternalHeaders(head: RequestHead): void {
  const { names } = head.headers;
  for (let i = names.length - 1; i >= 0; i--) {
    const name = names[i]!;
    if (isInternalName(name) && name !== peerMetadataHeader) head.headers.remove(name);
  }
}

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
      headers.set(forwardedCertHeader, before === undefined ? certElement(client, settings) : `${before},${certElement(client, settings)}`);
      return;
    }
    case 'sanitizeSet':
      if (client.peer === undefined) headers.remove(forwardedCertHeader);
      else headers.set(forwardedCertHeader, certElement(client, settings));
      return;
    case 'sanitize':
      headers.remove(forwardedCertHeader);
  }
}

function certElement(client: Client, settings: ConnectionSettings): string {
  if (client.forwardedCert === undefined) {
    const peer = client.peer!;
    client.forwardedCert = `By=${settings.context.self.principal};Hash=${peer.hash};Subject="${peer.subject.replaceAll('"', '\\"')}";URI=${peer.uri}`;
  }
  return client.forwardedCert;
}
