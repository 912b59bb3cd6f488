import { EventEmitter, once } from 'node:events';
import type { Logger } from '@mizzen/common';
import { AdminServer } from './admin/admin-server.ts';
import type { ProxyConfig } from './proxy-config.ts';
import { encodePeerMetadata, type PeerMetadata, PeerMetadataReader } from './telemetry/peer-metadata.ts';
import { ProxyCounters } from './telemetry/proxy-counters.ts';
import { RequestMetricsTable } from './telemetry/request-metrics.ts';
import { SecretStore } from './tls/secret-store.ts';
import { AdsClient } from './xds/ads-client.ts';
import { HealthProber } from './xds/health-prober.ts';
import { IdentityAgent } from './xds/identity-agent.ts';
import { nodeOf } from './xds/node.ts';
import { ResourceState } from './xds/resource-state.ts';

/** A running proxy: a sidecar or a gateway. */
export interface StartedProxy {
  readonly adminPort: number | undefined;
  /** Resolves when all listeners take connections. */
  readonly ready: Promise<void>;
  /** Stops taking connections, lets requests under way end, and closes. Idempotent. */
  close(): Promise<void>;
}

const sweepIntervalMs = 1_000;
const defaultDrainMs = 5_000;

/** Starts a proxy. It has no listeners until the control plane has told it of some. */
export async function startProxy(config: ProxyConfig, logger: Logger): Promise<StartedProxy> {
  const counters = new ProxyCounters();
  const metrics = new RequestMetricsTable();
  const secrets = new SecretStore();
  const self = selfMetadata(config);
  const events = new EventEmitter();
  const configured = once(events, 'ready').then(() => undefined);
  const state = new ResourceState({
    secrets,
    counters,
    logger,
    context: {
      self,
      selfHeader: encodePeerMetadata(self),
      selfId: `${config.type === 'gateway' ? 'router' : 'sidecar'}~${config.address}~${config.name}.${config.namespace}~${config.namespace}.svc.cluster.local`,
      peers: new PeerMetadataReader(),
      metrics,
      counters,
      random: Math.random,
    },
    accessLogFile: config.accessLogFile,
    onReady: () => events.emit('ready'),
  });
  const identity = new IdentityAgent(config, secrets, counters, logger);
  let ads: AdsClient | undefined;
  let prober: HealthProber | undefined;
  let isHealthy = config.probe === undefined;
  let isClosing = false;
  let admin: AdminServer | undefined;
  let adminPort: number | undefined;
  if (config.adminPort !== undefined) {
    admin = new AdminServer({
      port: config.adminPort,
      state,
      secrets,
      counters,
      metrics,
      logger,
      versions: () => ads?.versions() ?? {},
      isReady: () => {
        if (isClosing) return { ready: false, reason: 'draining' };
        if (!secrets.keyPair('default')) return { ready: false, reason: 'no certificate yet' };
        return { ready: state.isReady, reason: 'the first configuration has not arrived' };
      },
    });
    adminPort = await admin.listen();
  }
  const node = nodeOf(config, adminPort);
  const client = new AdsClient({ control: config.control, node, state, identity, counters, logger });
  ads = client;
  if (!isHealthy) client.reportHealth('the application has not been asked yet');
  // The stream needs no certificate: it starts with the token, so that configuration and certificate arrive together.
  const starting = identity.start();
  client.start();
  if (config.probe) {
    prober = new HealthProber(config.probe, (reason) => {
      isHealthy = reason === undefined;
      if (!isClosing) client.reportHealth(reason);
      logger.info(isHealthy ? 'the application is healthy' : 'the application is not healthy', reason === undefined ? {} : { reason });
    });
    prober.start();
  }
  const ready = Promise.all([configured, starting]).then(() => {
    if (!isClosing) logger.info('ready', { listeners: state.openListeners().length, clusters: state.clusters().length });
  });
  const sweeper = setInterval(() => state.sweep(performance.now()), sweepIntervalMs);

  const close = async () => {
    isClosing = true;
    prober?.close();
    // First nobody is sent here any more, then nobody is let in, then those inside may finish.
    if (config.registers) {
      client.reportHealth('shutting down');
      await sleep(Math.min(200, config.drainMs ?? defaultDrainMs));
    }
    state.drain();
    const deadline = performance.now() + (config.drainMs ?? defaultDrainMs);
    while (state.activeConnections() > 0 && performance.now() < deadline) await sleep(20);
    clearInterval(sweeper);
    identity.close();
    await client.close();
    await state.close();
    await admin?.close();
    await starting;
  };
  let closing: Promise<void> | undefined;
  return { adminPort, ready, close: () => (closing ??= close()) };
}

function selfMetadata(config: ProxyConfig): PeerMetadata {
  const app = config.labels['app'] ?? config.workload;
  const version = config.labels['version'] ?? 'latest';
  return {
    workload: config.workload,
    namespace: config.namespace,
    app: config.labels['app'] ?? 'unknown',
    version: config.labels['version'] ?? 'unknown',
    canonicalService: config.labels['service.istio.io/canonical-name'] ?? app,
    canonicalRevision: config.labels['service.istio.io/canonical-revision'] ?? version,
    cluster: 'Kubernetes',
    principal: `spiffe://${config.trustDomain}/ns/${config.namespace}/sa/${config.serviceAccount}`,
  };
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
