import { Logger } from '@mizzen/common';
import { noMessaging } from '@mizzen/envoy-api';
import { startMessaging } from '@mizzen/message';
import { Engine } from '@mizzen/proxy/engine';
import { defaultOverloadSettings } from '@mizzen/proxy/overload/overload-manager';
import { unknownPeer } from '@mizzen/proxy/telemetry/peer-metadata';

/** A sidecar's message mesh without the rest of the mesh: `message-sidecar.ts BROKER-PORT HTTP-PORT GRPC-PORT [APP-PORT]`. */
const [brokerPort, httpPort, grpcPort, appPort] = process.argv.slice(2).map(Number) as [number, number, number, number | undefined];
const logger = new Logger('bench', 'error');
const engine = new Engine({
  self: unknownPeer,
  selfId: 'bench',
  accessLogFile: undefined,
  overload: defaultOverloadSettings,
  opensListeners: true,
  reusesPort: false,
  expectsSockets: false,
  drainMs: 100,
  logger,
});
const messaging = await startMessaging({
  engine,
  logger,
  config: {
    type: 'sidecar',
    name: 'bench',
    namespace: 'default',
    workload: 'bench',
    serviceAccount: 'bench',
    labels: {},
    trustDomain: 'cluster.local',
    address: '127.0.0.1',
    control: '',
    rootCertificateFile: '',
    tokenFile: '',
    messaging: { appId: 'bench', httpPort, grpcPort, ...(appPort ? { app: { port: appPort, protocol: 'http' as const } } : {}) },
  },
});
await messaging.listen();
messaging.accept(
  JSON.stringify({
    ...noMessaging,
    appId: 'bench',
    components: [{ name: 'pubsub', type: 'pubsub.mizzen', metadata: { address: `127.0.0.1:${brokerPort}`, plaintext: 'true' } }],
    subscriptions: appPort
      ? [
          {
            pubsubname: 'pubsub',
            topic: 't',
            rules: [],
            defaultPath: '/t',
            deadLetterTopic: '',
            bulk: undefined,
            metadata: { maxInFlight: '64' },
            type: 'DECLARATIVE',
          },
        ]
      : [],
  }),
);
