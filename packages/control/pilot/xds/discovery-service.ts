import { Code, ConnectError, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { type DiscoveryType, discoveryTypes, typeUrls } from '@mizzen/envoy-api';
import type { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import type { DiscoveryRequest, DiscoveryResponse } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import { authenticate, type TransportPeer, tokenEndOf, transportPeerKey } from '../../citadel/caller.ts';
import type { CertificateAuthority } from '../../citadel/certificate-authority.ts';
import { type Identity, spiffeUri } from '../../citadel/spiffe-identity.ts';
import type { WorkloadTokens } from '../../citadel/workload-tokens.ts';
import type { Pilot } from '../pilot.ts';
import { type ProxyView, viewOf } from '../proxy-view.ts';
import { FairTurns } from './fair-turns.ts';
import { type ProvenIdentity, proveIdentity, UnprovenIdentity } from './proven-identity.ts';
import { ProxyConnection } from './proxy-connection.ts';

const boundary = errorBoundary('xds.stream');

const typeByUrl = new Map<string, DiscoveryType>(discoveryTypes.map((type) => [typeUrls[type], type]));
/** Istio's way for a sidecar to say whether its application is healthy: `error_detail` is set when it is not. */
const healthTypeUrl = 'type.googleapis.com/istio.v1.HealthInformation';

/** Resources that one request may name: more than any proxy has clusters. */
const maxNames = 50_000;
/** Streams that are open on one connection at once. A proxy has one; each holds its whole configuration. */
const maxStreamsPerConnection = 8;

/** ADS over gRPC. A proxy is what its certificate or token and the registry prove (proven-identity.ts), whatever its node claims. */
export function discoveryService(
  pilot: Pilot,
  authority: CertificateAuthority,
  tokens: WorkloadTokens,
  logger: Logger,
): ServiceImpl<typeof AggregatedDiscoveryService> {
  const turns = new FairTurns();
  const streams = new Map<string, number>();
  return {
    async *streamAggregatedResources(requests: AsyncIterable<DiscoveryRequest>, context: HandlerContext): AsyncIterable<DiscoveryResponse> {
      const peer = context.values.get(transportPeerKey);
      const identity = peer.isPlainLoopback ? undefined : await authenticate(context, tokens, pilot.trustDomain);
      const count = streams.get(peer.address) ?? 0;
      if (count >= maxStreamsPerConnection) throw new ConnectError(`more than ${maxStreamsPerConnection} streams on one connection`, Code.ResourceExhausted);
      streams.set(peer.address, count + 1);
      try {
        yield* serve(requests, context, peer, identity);
      } finally {
        const left = (streams.get(peer.address) ?? 1) - 1;
        if (left > 0) streams.set(peer.address, left);
        else streams.delete(peer.address);
      }
    },
    deltaAggregatedResources(): AsyncIterable<never> {
      throw new ConnectError('delta xDS is not served yet: use state-of-the-world ADS', Code.Unimplemented);
    },
  };

  async function* serve(
    requests: AsyncIterable<DiscoveryRequest>,
    context: HandlerContext,
    peer: TransportPeer,
    identity: Identity | undefined,
  ): AsyncIterable<DiscoveryResponse> {
    const iterator = requests[Symbol.asyncIterator]();
    const first = await iterator.next();
    if (first.done) return;
    const connection = open(first.value, identity, peer);
    pilot.connected(connection);
    const reading = readRequests(first.value, iterator, connection).catch((error: unknown) => {
      if (error instanceof ConnectError) connection.responses.fail(error);
      else boundary.unexpected(error);
      if (!context.signal.aborted) logger.debug('a stream ended', { proxy: connection.view.name, error: messageOf(error) });
    });
    boundary.start(() => reading.finally(() => connection.responses.close()));
    // A stream proves no more than what it was opened with.
    const endsAt = identity === undefined ? undefined : tokenEndOf(context);
    const expired = () => connection.responses.fail(new ConnectError('the token that the stream was opened with has expired', Code.Unauthenticated));
    const timer = endsAt === undefined ? undefined : boundary.after(endsAt - Date.now(), expired).unref();
    try {
      yield* connection.responses;
    } finally {
      clearTimeout(timer);
      connection.responses.close();
      pilot.disconnected(connection);
    }
  }

  function open(request: DiscoveryRequest, identity: Identity | undefined, { address, certificate }: TransportPeer): ProxyConnection {
    let claimed: ProxyView;
    try {
      claimed = viewOf(request.node);
    } catch (error) {
      throw new ConnectError(error instanceof MizzenError ? error.message : 'the node cannot be read', Code.InvalidArgument);
    }
    let proven: ProvenIdentity;
    try {
      proven = proveIdentity(claimed, identity, address, pilot.bindings);
    } catch (error) {
      if (!(error instanceof UnprovenIdentity)) throw error;
      logger.warn('refused a proxy that is not what it claims', { from: address, reason: error.message });
      throw new ConnectError(error.message, Code.PermissionDenied);
    }
    // Whoever comes with a token gets its first certificate now.
    const generation = certificate === undefined ? identity && authority.signingGeneration : authority.generationOf(certificate);
    return new ProxyConnection(claimed, proven, identity, address, { serial: certificate?.serialNumber.toLowerCase(), generation }, new Date());
  }

  async function readRequests(first: DiscoveryRequest, iterator: AsyncIterator<DiscoveryRequest>, connection: ProxyConnection): Promise<void> {
    for (let next: IteratorResult<DiscoveryRequest> = { value: first, done: false }; !next.done; next = await iterator.next()) {
      const request = next.value;
      if (request.resourceNames.length > maxNames)
        throw new ConnectError(`a request names ${request.resourceNames.length} resources, and may name ${maxNames}`, Code.ResourceExhausted);
      // Each request costs what its resources cost to make: who asks without end waits for all others.
      await turns.next(connection.identity === undefined ? 'plain' : spiffeUri(connection.identity));
      boundary.enter();
      const type = typeByUrl.get(request.typeUrl);
      if (type) pilot.requested(connection, type, request);
      else if (request.typeUrl === healthTypeUrl) pilot.healthChanged(connection, request.errorDetail?.message);
      else logger.debug('a proxy asked for a type that is not served', { proxy: connection.view.name, type: request.typeUrl });
    }
  }
}
