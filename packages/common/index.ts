/** Few, small, named things that every other package may use. */
export { Backoff } from './backoff.ts';
export { BoundedOutput } from './bounded-output.ts';
export {
  authorityProblem,
  intermediateProblem,
  peerProblem,
  serverChainError,
  serverChainProblem,
  usableRoots,
  VettedAgent,
  verifyServerCertificate,
  vetLibraryClients,
  vetServer,
} from './certificate-rules.ts';
export { closestName, editDistance } from './closest-name.ts';
export { coarseNow } from './coarse-clock.ts';
export { type DerElement, derElement, derElements } from './der.ts';
export { formatDurationMs, maxTimerMs, parseDurationMs, timerMs } from './duration.ts';
export {
  clearFaults,
  ErrorBoundary,
  errorBoundary,
  errorPlaces,
  injectFault,
  internalErrors,
  logErrorsTo,
} from './error-boundary.ts';
export { collectAll, collectYoung, compactHeap } from './garbage.ts';
export { emitAgain } from './guarded-events.ts';
export { brokenExitCode, ErrorWindow, keepServingAfterErrors, lastLines, type ProcessKind, unattributedErrors } from './last-line.ts';
export { type LogFields, Logger, type LogLevel, lostLogLines, silentLogger } from './logger.ts';
export { MizzenError, messageOf } from './mizzen-error.ts';
export { http } from './node-http.ts';
export { describeOrigin, type Origin } from './origin.ts';
export { parseBool } from './parse-bool.ts';
export { type PasswordHash, passwordHashLimits, readPasswordHash } from './password-hash.ts';
export { patientTimeout } from './patient-timeout.ts';
export { pemBlocks, pemCertificates } from './pem-blocks.ts';
export { printableJson, printableLines, printableText } from './printable-text.ts';
export { PushQueue } from './push-queue.ts';
export { parseSpiffeId, type SpiffeId } from './spiffe-id.ts';
export { defaultCipherSuites, tlsDefaults } from './tls-defaults.ts';
export { isUnixAddress, isUnixPath, maxUnixPathBytes, unixPathOf, unixPathProblem } from './unix-address.ts';
export { version } from './version.ts';
