import { Code, ConnectError, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { type DiscoveryType, discoveryTypes, typeUrls } from '@mizzen/envoy-api';
import type { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import type { DiscoveryRequest, DiscoveryResponse } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import { authenticate, type TransportPeer, transportPeerKey } from '../../citadel/caller.ts';
import type { CertificateAuthority } from '../../citadel/certificate-authority.ts';
import type { Identity } from '../../citadel/spiffe-identity.ts';
import type { WorkloadTokens } from '../../citadel/workload-tokens.ts';
import type { Pilot } from '../pilot.ts';
import { type ProxyView, viewOf } from '../proxy-view.ts';
import { type ProvenIdentity, proveIdentity, UnprovenIdentity } from './proven-identity.ts';
import { ProxyConnection } from './proxy-connection.ts';

const boundary = errorBoundary('xds.stream');

const typeByUrl = new Map<string, DiscoveryType>(discoveryTypes.map((type) => [typeUrls[type], type]));
/** Istio's way for a sidecar to say whether its application is healthy: `error_detail` is set when it is not. */
const healthTypeUrl = 'type.googleapis.com/istio.v1.HealthInformation';

/** ADS over gRPC. A proxy is what its certificate or token and the registry prove (proven-identity.ts), whatever its node claims. */
export function discoveryService(
  pilot: Pilot,
  authority: CertificateAuthority,
  tokens: WorkloadTokens,
  logger: Logger,
): ServiceImpl<typeof AggregatedDiscoveryService> {
  return {
    async *streamAggregatedResources(requests: AsyncIterable<DiscoveryRequest>, context: HandlerContext): AsyncIterable<DiscoveryResponse> {
      const peer = context.values.get(transportPeerKey);
      const identity = peer.isPlainLoopback ? undefined : await authenticate(context, tokens, pilot.trustDomain);
      const iterator = requests[Symbol.asyncIterator]();
      const first = await iterator.next();
      if (first.done) return;
      const connection = open(first.value, identity, peer);
      pilot.connected(connection);
      const reading = readRequests(first.value, iterator, connection).catch((error: unknown) => {
        boundary.unexpected(error);
        if (!context.signal.aborted) logger.debug('a stream ended', { proxy: connection.view.name, error: messageOf(error) });
      });
      boundary.start(() => reading.finally(() => connection.responses.close()));
      try {
        yield* connection.responses;
      } finally {
        connection.responses.close();
        pilot.disconnected(connection);
      }
    },
    deltaAggregatedResources(): AsyncIterable<never> {
      throw new ConnectError('delta xDS is not served yet: use state-of-the-world ADS', Code.Unimplemented);
    },
  };

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
      boundary.enter();
      const type = typeByUrl.get(request.typeUrl);
      if (type) pilot.requested(connection, type, request);
      else if (request.typeUrl === healthTypeUrl) pilot.healthChanged(connection, request.errorDetail?.message);
      else logger.debug('a proxy asked for a type that is not served', { proxy: connection.view.name, type: request.typeUrl });
    }
  }
}
