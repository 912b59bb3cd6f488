/** Error boundaries that tests make throw, by the test that does. `error-boundaries.test.ts` compares them with those of the code. */

/** `error-boundaries-control.test.ts`; `rate-limit.spending` in packages/proxy/filters/rate-limit/shared-spending.test.ts; `worker.*` in `engine-lifecycle.test.ts`, `hot-restart` and `process` in `hot-restart.test.ts`. */
export const controlPlaces = [
  'api.client',
  'application.process',
  'ca.revocations',
  'capture.group',
  'certificate.reconcile',
  'command',
  'configuration.keep',
  'control.certificates',
  'directory.sync',
  'federation.refresh',
  'hot-restart',
  'identity.renew',
  'jwks.fetch',
  'process',
  'rate-limit.spending',
  'registration',
  'runner',
  'script-process',
  'spiffe.connection',
  'spiffe.process',
  'supervisor',
  'tls.files',
  'tls.revocation',
  'vetted.agent',
  'worker.message',
  'worker.process',
] as const;

/** `error-boundaries-proxy.test.ts` */
export const proxyPlaces = [
  'access-log',
  'authentication.password',
  'dns.forward',
  'dns.query',
  'dns.refresh',
  'health-check',
  'https.call',
  'listener.inspection',
  'listener.open',
  'login',
  'own-request',
  'proxy',
  'rate-limit.redis',
  'rate-limit.sweep',
  'request.filter',
  'request.onEndpointRemoved',
  'request.onInformational',
  'request.onTunnel',
  'request.onUpstreamFailure',
  'request.timer',
  'tls.client',
  'tls.renew',
  'tracing.export',
  'turn-end.close',
  'udp.datagram',
] as const;

/** Of a message on its way through the embedded broker and a sidecar: `error-boundaries.test.ts`. */
export const embeddedPlaces = [
  ...['broker.connection', 'broker.frames', 'broker.group', 'broker.log', 'broker.log.callback', 'broker.offsets', 'broker.topic'],
  ...['dapr.request', 'driver.embedded', 'message.bulk', 'message.delivery', 'message.lag', 'message.publish', 'message.subscriptions', 'message.timer'],
];
/** Of the clients of other brokers, by broker: `message-brokers.test.ts`. */
export const driverPlaces = {
  nats: ['driver.nats'],
  redis: ['driver.redis', 'driver.held-message'],
  rabbitmq: ['driver.rabbitmq'],
} as const;
/** `broker.mesh` in `broker-access.test.ts`. */
export const messagePlaces: readonly string[] = [...embeddedPlaces, ...Object.values(driverPlaces).flat(), 'broker.mesh'];
