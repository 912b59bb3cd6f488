/** The data plane: a sidecar or gateway that takes everything it knows from xDS. */
export { type AskedRequest, type ExplainedPort, explainAuthorization } from './authorization/explain.ts';
export { compileBootstrap, isBootstrap, type StaticConfig } from './bootstrap.ts';
export { type MessagingService, type MessagingSurroundings, type StartedProxy, type StartOptions, startProxy, startStaticProxy } from './proxy.ts';
export { checkProxyConfig, defaultDrainMs, defaultMaxDrainingProcesses, maxSocketPathLength, type ProxyConfig } from './proxy-config.ts';
export { hotRestartEpoch, predecessor } from './workers/successor.ts';
