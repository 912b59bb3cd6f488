import type tls from 'node:tls';
import { errorBoundary, MizzenError, messageOf, serverChainError } from '@mizzen/common';
import type { MessagingConfig, Subscription } from '@mizzen/envoy-api';
import { brokerAccount, packAny } from '@mizzen/envoy-api';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { HttpConnectionManagerSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { HttpProtocolOptionsSchema } from '@mizzen/envoy-api/gen/envoy/extensions/upstreams/http/v3/http_protocol_options_pb.js';
import type { MessagingService, MessagingSurroundings } from '@mizzen/proxy';
import { Engine } from '@mizzen/proxy/engine';
import { defaultOverloadSettings } from '@mizzen/proxy/overload/overload-manager';
import { unknownPeer } from '@mizzen/proxy/telemetry/peer-metadata';
import { isRevoked, leafCrls } from '@mizzen/proxy/tls/leaf-crl';
import { rootSecretName, workloadSecretName } from '@mizzen/proxy/tls/secret-names';
import { rootsOfDomain } from '@mizzen/proxy/tls/secret-store';
import { sendOwnRequest } from '@mizzen/proxy/upstream/own-request';
import { appFieldsOf } from './api/api-token.ts';
import { DaprGrpcServer } from './api/dapr-grpc.ts';
import { DaprHttpApi } from './api/dapr-http.ts';
import { readDeclared } from './api/declared-subscriptions.ts';
import { GrpcAppChannel } from './api/grpc-app-channel.ts';
import { HttpAppChannel } from './api/http-app-channel.ts';
import { MessageMetrics } from './api/message-metrics.ts';
import { MessageRuntime } from './api/message-runtime.ts';

const boundary = errorBoundary('message.subscriptions');

const appCluster = 'app';
const askTimeoutMs = 3_000;
const askAgainMs = 5_000;
const brokerPath = `/ns/${brokerAccount.namespace}/sa/${brokerAccount.serviceAccount}`;

/** Starts the message mesh of one sidecar: the local API by HTTP and gRPC, and the way to the application. */
export async function startMessaging({ config, engine, logger }: MessagingSurroundings): Promise<MessagingService> {
  const messaging = config.messaging!;
  const { app } = messaging;
  const apiToken = process.env['DAPR_API_TOKEN'];
  const appFields = appFieldsOf(process.env['APP_API_TOKEN']);
  let runtime!: MessageRuntime;
  let http!: DaprHttpApi;
  // The API is served by an engine of its own: what it does has no part in the workload's traffic, and its metrics are its own.
  const api = new Engine({
    self: { ...unknownPeer, workload: config.workload },
    selfId: `messaging~127.0.0.1~${config.name}~`,
    accessLogFile: undefined,
    overload: defaultOverloadSettings,
    opensListeners: true,
    reusesPort: false,
    expectsSockets: false,
    drainMs: 1_000,
    logger,
    localService: { handle: (exchange) => http.handle(exchange) },
  });
  const findApp = () => api.findCluster(appCluster);
  const channel =
    app === undefined
      ? undefined
      : app.protocol === 'grpc'
        ? new GrpcAppChannel(findApp, appFields)
        : new HttpAppChannel(findApp, `127.0.0.1:${app.port}`, appFields);
  runtime = new MessageRuntime({
    appId: messaging.appId,
    identity: `spiffe://${config.trustDomain}/ns/${config.namespace}/sa/${config.serviceAccount}`,
    namespace: config.namespace,
    channel,
    findCluster: (name) => engine.findCluster(name),
    meshTls: () => {
      const pair = engine.secrets.keyPair(workloadSecretName);
      const roots = engine.secrets.roots(rootSecretName);
      if (pair === undefined || roots === undefined) throw new Error('this sidecar has no certificate yet');
      return {
        cert: pair.cert,
        key: pair.key,
        // Roots of other trust domains could hide the broker's by their names.
        ca: rootsOfDomain(roots, config.trustDomain) ?? roots.pem,
        servername: 'mizzen-broker',
        checkServerIdentity: (_host, certificate) => {
          if ((certificate.subjectaltname ?? '') !== `URI:spiffe://${config.trustDomain}${brokerPath}`)
            return new Error(`the server is ${certificate.subjectaltname ?? 'without a name'}, not the mesh's broker`);
          const problem = serverChainError(certificate);
          if (problem !== undefined) return problem;
          const isBad = roots.leafCrl !== undefined && isRevoked(certificate.raw, leafCrls(roots.leafCrl));
          return isBad ? new Error("the certificate of the mesh's broker is revoked") : undefined;
        },
      } satisfies tls.ConnectionOptions;
    },
    appFields,
    metrics: new MessageMetrics(engine.counters),
    logger,
  });
  http = new DaprHttpApi(runtime, app === undefined ? undefined : { port: app.port, protocol: app.protocol, channelAddress: '127.0.0.1' }, logger, apiToken);
  const grpc = new DaprGrpcServer(runtime, http, messaging.grpcPort, apiToken);
  let told: MessagingConfig | undefined;
  const configure = () => {
    if (told !== undefined) runtime.configure(withSecrets(told, (name) => engine.secrets.generic(name)));
  };
  const stopFollowing = engine.secrets.onChange((name) => {
    if (told !== undefined && secretNamesOf(told).includes(name)) configure();
  });
  let declaredProblem = '';
  /** Once, since the application is asked again and again. */
  const reportDeclared = (problem: string) => {
    if (problem !== '' && problem !== declaredProblem) logger.error(`subscriptions that the application declares at /dapr/subscribe are left out: ${problem}`);
    declaredProblem = problem;
  };
  let asking: NodeJS.Timeout | undefined;
  let isClosed = false;

  /** What the application subscribes to; it is asked again, since it may be started anew with other wishes. */
  const ask = async (): Promise<void> => {
    asking = undefined;
    if (isClosed || app === undefined) return;
    const declared = channel instanceof GrpcAppChannel ? await channel.subscriptions(askTimeoutMs) : await askByHttp();
    if (declared !== undefined) runtime.declare(declared);
    if (!isClosed) askAfter(declared === undefined ? 500 : askAgainMs);
  };
  const askAfter = (delayMs: number) => {
    asking = boundary.after(delayMs, askSoon, () => askAfter(askAgainMs)).unref();
  };
  const askSoon = () => boundary.start(ask, () => isClosed || askAfter(askAgainMs));
  const askByHttp = () =>
    new Promise<readonly Subscription[] | undefined>((resolve) => {
      const cluster = findApp();
      if (cluster === undefined) return resolve(undefined);
      sendOwnRequest(
        cluster,
        {
          method: 'GET',
          path: '/dapr/subscribe',
          authority: `127.0.0.1:${app!.port}`,
          fields: appFields,
          body: Buffer.alloc(0),
          timeoutMs: askTimeoutMs,
          maxAnswerBytes: 1024 * 1024,
        },
        (answer) => {
          if ('reason' in answer) return resolve(undefined);
          // An application that cannot answer now has not withdrawn anything; one that declares nothing need not know the path.
          if (answer.head.status >= 500) return resolve(undefined);
          if (answer.head.status !== 200) return resolve([]);
          try {
            const { subscriptions, problems } = readDeclared(JSON.parse(answer.body.toString('utf8')) as unknown);
            reportDeclared(problems.join('; '));
            resolve(subscriptions);
          } catch (error) {
            reportDeclared(messageOf(error));
            resolve([]);
          }
        },
      );
    });

  return {
    async listen() {
      if (app !== undefined) api.accept('cluster', [packAny(ClusterSchema, clusterOf(app))]);
      else api.accept('cluster', []);
      api.accept('listener', [packAny(ListenerSchema, listenerOf(messaging.httpPort))]);
      await Promise.all([api.ready, grpc.listen()]);
    },
    accept(text) {
      let next: MessagingConfig;
      try {
        next = JSON.parse(text) as MessagingConfig;
      } catch (error) {
        throw new MizzenError('invalid-messaging', `the configuration of the message mesh cannot be read: ${messageOf(error)}`);
      }
      told = next;
      configure();
    },
    secretNames: () => (told === undefined ? [] : secretNamesOf(told)),
    applicationIsHealthy() {
      if (asking === undefined) askSoon();
    },
    async close() {
      if (isClosed) return;
      isClosed = true;
      stopFollowing();
      clearTimeout(asking);
      await runtime.close();
      await Promise.all([grpc.close(), api.close(200, 0)]);
    },
  };
}

const secretNamesOf = ({ components }: MessagingConfig): string[] => components.flatMap(({ secretNames = {} }) => Object.values(secretNames)).sort();

/** Puts the secrets that have arrived into the metadata of their components; a component keeps the names of those that have not. */
function withSecrets(config: MessagingConfig, secretOf: (name: string) => Buffer | undefined): MessagingConfig {
  return {
    ...config,
    components: config.components.map((component) => {
      const metadata: Record<string, string> = { ...component.metadata };
      const missing: Record<string, string> = {};
      for (const [field, name] of Object.entries(component.secretNames ?? {})) {
        const secret = secretOf(name);
        if (secret === undefined) missing[field] = name;
        else metadata[field] = secret.toString('utf8');
      }
      return { ...component, metadata, secretNames: missing, secretFields: Object.keys(component.secretNames ?? {}) };
    }),
  };
}

function listenerOf(port: number) {
  return {
    name: 'messages',
    address: { address: { case: 'socketAddress' as const, value: { address: '127.0.0.1', portSpecifier: { case: 'portValue' as const, value: port } } } },
    filterChains: [
      {
        filters: [
          {
            name: 'envoy.filters.network.http_connection_manager',
            configType: {
              case: 'typedConfig' as const,
              value: packAny(HttpConnectionManagerSchema, {
                statPrefix: 'messages',
                routeSpecifier: {
                  case: 'routeConfig',
                  value: {
                    name: 'messages',
                    virtualHosts: [
                      {
                        name: 'messages',
                        domains: ['*'],
                        routes: [{ match: { pathSpecifier: { case: 'prefix', value: '/' } }, action: { case: 'directResponse', value: { status: 500 } } }],
                      },
                    ],
                  },
                },
                httpFilters: [{ name: 'mizzen.filters.http.local_service' }, { name: 'envoy.filters.http.router' }],
              }),
            },
          },
        ],
      },
    ],
  };
}

function clusterOf({ port, protocol }: { readonly port: number; readonly protocol: 'http' | 'grpc' }) {
  return {
    name: appCluster,
    clusterDiscoveryType: { case: 'type' as const, value: 0 },
    connectTimeout: { seconds: 2n },
    loadAssignment: {
      clusterName: appCluster,
      endpoints: [
        {
          lbEndpoints: [
            {
              hostIdentifier: {
                case: 'endpoint' as const,
                value: {
                  address: {
                    address: { case: 'socketAddress' as const, value: { address: '127.0.0.1', portSpecifier: { case: 'portValue' as const, value: port } } },
                  },
                },
              },
            },
          ],
        },
      ],
    },
    typedExtensionProtocolOptions: {
      'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': packAny(HttpProtocolOptionsSchema, {
        upstreamProtocolOptions: {
          case: 'explicitHttpConfig',
          value: { protocolConfig: protocol === 'grpc' ? { case: 'http2ProtocolOptions', value: {} } : { case: 'httpProtocolOptions', value: {} } },
        },
      }),
    },
  };
}
