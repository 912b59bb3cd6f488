// The check of error boundaries (packages/common/error-boundary.ts), by types and not by spelling: what Node.js calls back, or ends the
// process for, runs in a boundary. Six rules for the code of packages/: see `rules`. What is safe for a reason that the rules cannot see
// stands in `reasons`; a reason that no code needs any longer is an error too. Runs as part of `npm run check-imports`.
import { join, relative } from 'node:path';
import { type CallExpression, type Expression, type NewExpression, type Node, type SourceFile, SyntaxKind } from 'typescript/unstable/ast';
import { API, type Checker, SignatureKind, type Type } from 'typescript/unstable/sync';

const rules = {
  owner: 'a socket, server, session, stream, process or watcher is created inside `boundary.own(...)`, so that its `error` events have a listener',
  timer: '`setTimeout`, `setInterval`, `setImmediate` and `queueMicrotask` are `boundary.after`, `every` and `soon`, or resolve a promise',
  event: 'an event handler is on an owned emitter, or made by `boundary.guard` or `wrap`, or cannot throw',
  promise: 'a promise that no code waits for ends in `.catch(...)` or is given to `boundary.start`',
  callback: 'a function that the runtime or a library calls is made by `boundary.wrap` or `guard`, or cannot throw',
  async: 'an asynchronous function is not a callback whose result is dropped',
} as const;
type Rule = keyof typeof rules;

/** By file and rule: why code there needs no boundary of the usual form. */
const reasons: Readonly<Record<string, Partial<Record<Rule, string>>>> = {
  'packages/common/error-boundary.ts': { promise: 'the boundary itself: both outcomes are given, and `caught` never throws' },
  'packages/common/guarded-events.ts': { event: 'the owner of `error` events itself' },
  'packages/common/last-line.ts': { event: 'the last line itself' },
  'packages/common/coarse-clock.ts': { timer: 'it only reads the clock' },
  'packages/proxy/filters/script/script-process.ts': {
    owner: 'the process of one filter, with a last line of its own; the proxy starts another',
    timer: 'as above',
    event: 'as above',
    promise: 'both outcomes are given; what they throw is reported as a stray error',
    callback: 'as above',
  },
  'packages/proxy/filters/script/script-reader.ts': { owner: 'its errors end the process of one filter, as intended', event: 'as above' },
  'packages/proxy/http/http1-downstream.ts': { event: 'hot path: `onData` is one boundary' },
  'packages/proxy/http/http2-downstream.ts': { event: 'hot path: `onData` is one boundary' },
  'packages/proxy/net/listener.ts': {
    owner: 'hot path: its handlers are guarded one by one, sockets belong to their connection',
    event: 'it counts down',
    callback: '`#acceptGuarded` catches',
  },
  'packages/proxy/tls/server-tls.ts': {
    owner: 'hot path: its handlers are guarded one by one; each socket belongs to its connection',
    callback: '`ALPNCallback` searches a list',
  },
  'packages/proxy/spiffe/workload-api.ts': { callback: 'ConnectRPC catches what its handlers throw' },
  'packages/message/api/dapr-grpc.ts': { callback: 'ConnectRPC catches what its handlers throw' },
  'packages/message/message-plane.ts': { callback: '`checkServerIdentity` of a socket whose events are owned' },
  'packages/message/brokers/rabbitmq.ts': { callback: 'both steps of `consume` are guarded' },
  'packages/message/api/bounded-cel.ts': { callback: 'called within an evaluation, whose caller catches' },
  'packages/message/log/partition-log.ts': { callback: 'arithmetic before `done`, which is guarded' },
  'packages/gateway/linear-keywords.ts': { callback: 'called within a validation, whose caller catches' },
  'packages/control/control-plane.ts': { callback: '`contextValues` is called within the boundary of its request (grpc-server.ts)' },
  'packages/control/citadel/trust-bundles.ts': { callback: '`checkServerIdentity` of a socket whose events are owned (VettedAgent)' },
  'packages/cli/main.ts': { callback: 'commander awaits them, and `main` prints what they throw' },
  'packages/common/certificate-rules.ts': { callback: '`vettedPeer` catches' },
  'packages/common/fetch-policy.ts': { callback: 'what `refuse` throws is caught; the rest is the callback of Node.js' },
  'packages/common/grpc-server.ts': { callback: '`push` is called by the events of a stream that is owned' },
  'packages/proxy/net/turn-end.ts': { timer: 'hot path: each flush is a boundary of its own' },
  'packages/proxy/net/udp-listener.ts': { owner: 'hot path: its handlers are guarded one by one' },
  'packages/proxy/upstream/transport.ts': { owner: 'hot path: the caller (http1-upstream, http2-upstream, tcp-session, health-checker) guards the handlers' },
};

const root = join(import.meta.dirname, '..');
/** Classes of Node.js, and of clients of brokers, for which an `error` event without listener ends the process. */
const emitters = new Set([
  ...['Socket', 'TLSSocket', 'Server', 'Http2Server', 'Http2SecureServer', 'ClientHttp2Session', 'ServerHttp2Session', 'Http2Session'],
  ...[
    'ClientHttp2Stream',
    'ServerHttp2Stream',
    'Http2Stream',
    'Http2ServerRequest',
    'Http2ServerResponse',
    'IncomingMessage',
    'ServerResponse',
    'ClientRequest',
  ],
  ...[
    'ChildProcess',
    'Worker',
    'MessagePort',
    'FSWatcher',
    'ReadStream',
    'WriteStream',
    'Readable',
    'Writable',
    'Duplex',
    'EventEmitter',
    'Interface',
    'Process',
  ],
  ...['Redis', 'ChannelModel', 'Channel', 'ConfirmChannel', 'SupervisedProcess', 'SidecarProcess'],
]);
const creators = new Set([
  ...['connect', 'createConnection', 'createServer', 'createSecureServer', 'createSocket', 'request', 'get', 'spawn', 'fork', 'exec', 'execFile'],
  ...['createReadStream', 'createWriteStream', 'watch', 'createInterface', 'createChannel', 'createConfirmChannel'],
  ...['Worker', 'Socket', 'TLSSocket', 'Redis'],
]);
const declaredByRuntime = /node_modules\/(?:@types\/(?:node|amqplib)|ioredis)\//;
/** Not the language's own: what is given to `map` or `then` is called by the code around it. */
const declaredByLibrary = /node_modules\/(?!.*\/lib\.[\w.]+\.d\.ts$)/;
const timers = new Set(['setTimeout', 'setInterval', 'setImmediate', 'queueMicrotask', 'nextTick']);
const listeners = new Set(['on', 'once', 'addListener', 'prependListener', 'prependOnceListener']);
const eventsAndTimers = new Set([...timers, ...listeners, 'off', 'removeListener']);
/** Of `ErrorBoundary`, and of an exchange, whose continuations end the request. */
const boundaryMethods = new Set(['run', 'guard', 'wrap', 'after', 'every', 'soon', 'start', 'own', 'runGuarded', 'later', 'startWork']);
/** Calls that cannot throw: in handlers that do nothing else. */
const harmless = new Set([
  ...['destroy', 'destroySoon', 'resume', 'pause', 'unref', 'ref', 'delete', 'add', 'push', 'kill', 'resolve', 'reject', 'finish', 'settle', 'done'],
  ...['clearTimeout', 'clearInterval', 'clearImmediate', 'exit', 'abort', 'caught', 'unexpected', 'messageOf', 'String', 'removeEventListener', 'coarseNow'],
  // Of loggers, which never throw.
  ...['debug', 'info', 'warn', 'error'],
]);

type Call = CallExpression | NewExpression;
interface Finding {
  readonly file: string;
  readonly line: number;
  readonly rule: Rule;
  readonly text: string;
}

const api = new API({ cwd: root });
const project = api.updateSnapshot({ openProjects: [join(root, 'tsconfig.json')] }).getProjects()[0];
if (project === undefined) throw new Error('tsconfig.json cannot be read');
const { checker } = project;
const findings: Finding[] = [];
let files = 0;
for (const path of project.rootFiles) {
  const file = relative(root, path);
  if (!/^packages\/(?!envoy-api\/gen)/.test(file) || file.endsWith('.test.ts') || file.includes('/gen/') || file.includes('node_modules')) continue;
  const source = project.program.getSourceFile(path);
  if (source === undefined) continue;
  files++;
  checkFile(file, source, checker);
}
api.close();

const used = new Set<string>();
const problems = findings.filter(({ file, rule }) => {
  if (reasons[file]?.[rule] === undefined) return true;
  used.add(`${file} ${rule}`);
  return false;
});
for (const { file, line, rule, text } of problems) console.error(`${file}:${line}: ${text}\n    ${rules[rule]}`);
for (const [file, byRule] of Object.entries(reasons))
  for (const rule of Object.keys(byRule)) {
    if (used.has(`${file} ${rule}`)) continue;
    console.error(`scripts/check-boundaries.ts: the reason for ${file} (${rule}) is not needed`);
    process.exitCode = 1;
  }
if (problems.length > 0) process.exitCode = 1;
console.log(problems.length === 0 ? `boundaries: ${files} files, all callbacks are guarded` : `boundaries: ${problems.length} problems`);

function checkFile(file: string, source: SourceFile, types: Checker): void {
  const calls: Call[] = [];
  const dropped: Expression[] = [];
  const functions: Expression[] = [];
  const visit = (node: Node): void => {
    if (node.kind === SyntaxKind.CallExpression || node.kind === SyntaxKind.NewExpression) calls.push(node as Call);
    if (node.kind === SyntaxKind.ExpressionStatement || node.kind === SyntaxKind.VoidExpression)
      dropped.push(...outcomes((node as Node & { expression: Expression }).expression));
    if (isFunction(node)) functions.push(node as Expression);
    node.forEachChild(visit);
  };
  visit(source);
  const report = (node: Node, rule: Rule) => {
    const line = source.text.slice(0, node.getStart(source)).split('\n').length;
    findings.push({ file, line, rule, text: node.getText(source).split('\n')[0]!.slice(0, 120) });
  };

  const definitions = definitionsIn(source);
  const isSafe = (callback: Expression) => isHarmlessCallback(definitions.get(callback.getText(source)) ?? callback, definitions);
  const owned = new Set<string>();
  for (const call of calls) {
    if (calleeName(call) !== 'own') continue;
    const argument = call.arguments?.[0];
    if (argument?.kind === SyntaxKind.Identifier || argument?.kind === SyntaxKind.PropertyAccessExpression) owned.add(argument.getText(source));
    const target = assignedTo(call);
    if (target !== undefined) owned.add(target.getText(source));
  }

  const created = calls.filter((call) => creators.has(calleeName(call)));
  for (const [i, type] of types.getTypeAtLocation(created).entries()) {
    const call = created[i]!;
    if (!typeNames(type).some((name) => emitters.has(name)) || isInside(call, (outer) => isCallOf(outer, new Set(['own'])))) continue;
    if (declaredByRuntime.test(types.getResolvedSignature(call)?.declaration?.path ?? '')) report(call, 'owner');
  }

  for (const call of calls) {
    if (!timers.has(calleeName(call)) || call.arguments?.length === 0 || isPromiseTimer(call, source)) continue;
    if (call.expression.kind !== SyntaxKind.Identifier && !/^(?:process|globalThis)\b/.test(call.expression.getText(source))) continue;
    const callback = call.arguments?.[0];
    if (callback !== undefined && !isSafe(callback)) report(call, 'timer');
  }

  // A chain in a field: one rejection would be the end of all that is to come.
  for (const call of calls) {
    const assignment = call.parent as Node & { left?: Node; right?: Node };
    if (assignment?.kind !== SyntaxKind.BinaryExpression || assignment.right !== call || isCaught(call)) continue;
    if (calleeName(call) === 'then' && rootReceiver(call).getText(source) === assignment.left?.getText(source)) report(call, 'promise');
  }

  const registrations = calls.filter(
    (call) => listeners.has(calleeName(call)) && call.arguments?.length === 2 && call.expression.kind === SyntaxKind.PropertyAccessExpression,
  );
  const receivers = registrations.map(receiver);
  for (const [i, type] of types.getTypeAtLocation(receivers).entries()) {
    const call = registrations[i]!;
    if (!typeNames(type).some((name) => emitters.has(name))) continue;
    const handler = call.arguments![1]!;
    const root = rootReceiver(receivers[i]!);
    if (owned.has(root.getText(source)) || isCallOf(root, new Set(['own'])) || isInside(call, (outer) => isCallOf(outer, new Set(['own'])))) continue;
    if (isSafe(handler)) continue;
    report(call, 'event');
  }

  const droppedTypes = types.getTypeAtLocation(dropped);
  for (const [i, type] of droppedTypes.entries()) {
    const expression = dropped[i]!;
    if (isPromise(type) && !isCaught(expression)) report(expression, 'promise');
  }

  // By name, too: a constant or a field that holds a function.
  const named = calls.flatMap((call) =>
    (call.arguments ?? []).filter((argument) => definitions.has(argument.getText(source)) && isFunction(definitions.get(argument.getText(source))!)),
  );
  for (const node of [...functions, ...named]) {
    if (isSafe(node) || isCallOf(node.parent, eventsAndTimers) || isInside(node, (outer) => isCallOf(outer, boundaryMethods))) continue;
    if (isCallOf(node.parent, new Set(['addEventListener'])) || declaredByLibrary.test(callbackDeclaration(node, types))) report(node, 'callback');
  }

  for (const node of functions) {
    const parent = node.parent;
    if (parent.kind !== SyntaxKind.CallExpression || !(parent as CallExpression).arguments.includes(node)) continue;
    if (isCallOf(parent, new Set(['start']))) continue;
    const body = (node as Node & { body?: Node }).body;
    const isAsync = node.getText(source).startsWith('async');
    if (!isAsync && (body === undefined || body.kind === SyntaxKind.Block || !isPromise(types.getTypeAtLocation(body)))) continue;
    if (!isAsync && body !== undefined && isCaught(body as Expression)) continue;
    const expected = types.getContextualType(node);
    if (expected === undefined) continue;
    const results = types.getSignaturesOfType(expected, SignatureKind.Call).map((signature) => types.getReturnTypeOfSignature(signature));
    if (results.length > 0 && results.every((result) => result !== undefined && types.typeToString(result) === 'void')) report(node, 'async');
  }

  /** What an expression may come to: the branches of `a && b`, `c ? a : b`. */
  function outcomes(expression: Expression): Expression[] {
    const node = expression as Node & { expression?: Expression; left?: Expression; right?: Expression; whenTrue?: Expression; whenFalse?: Expression };
    if (node.kind === SyntaxKind.ParenthesizedExpression) return outcomes(node.expression!);
    if (node.kind === SyntaxKind.ConditionalExpression) return [...outcomes(node.whenTrue!), ...outcomes(node.whenFalse!)];
    if (node.kind === SyntaxKind.BinaryExpression) {
      const { operatorToken } = node as Node & { operatorToken?: Node };
      const isLogical = [SyntaxKind.AmpersandAmpersandToken, SyntaxKind.BarBarToken, SyntaxKind.QuestionQuestionToken].includes(operatorToken!.kind);
      return isLogical ? outcomes(node.right!) : [];
    }
    return node.kind === SyntaxKind.VoidExpression || node.kind === SyntaxKind.AwaitExpression ? [] : [expression];
  }
}

/** Where the type that is expected of a function is declared. */
function callbackDeclaration(node: Expression, types: Checker): string {
  const contextual = types.getContextualType(node);
  const expected = contextual && types.getNonNullableType(contextual);
  const [signature] = expected === undefined ? [] : types.getSignaturesOfType(expected, SignatureKind.Call);
  return signature?.declaration?.path ?? '';
}

/** Functions that constants and fields of a file hold, as the code names them. */
function definitionsIn(source: SourceFile): ReadonlyMap<string, Expression> {
  const found = new Map<string, Expression>();
  const visit = (node: Node): void => {
    const { name, initializer } = node as Node & { name?: Node; initializer?: Expression };
    if (name !== undefined && initializer !== undefined) {
      if (node.kind === SyntaxKind.VariableDeclaration) found.set(name.getText(source), initializer);
      if (node.kind === SyntaxKind.PropertyDeclaration) found.set(`this.${name.getText(source)}`, initializer);
    }
    node.forEachChild(visit);
  };
  visit(source);
  return found;
}

function isFunction(node: Node): boolean {
  return node.kind === SyntaxKind.ArrowFunction || node.kind === SyntaxKind.FunctionExpression;
}

function calleeName(call: Call): string {
  const { expression } = call;
  if (expression.kind === SyntaxKind.Identifier) return (expression as unknown as { text: string }).text;
  if (expression.kind === SyntaxKind.PropertyAccessExpression) return (expression as unknown as { name: { text: string } }).name.text;
  return '';
}

function isCallOf(node: Node, names: ReadonlySet<string>): boolean {
  return node.kind === SyntaxKind.CallExpression && names.has(calleeName(node as CallExpression));
}

function receiver(call: Call): Expression {
  return (call.expression as unknown as { expression: Expression }).expression;
}

/** `socket` of `socket.setEncoding('utf8').once(...)`; an `own(...)` is the root of what follows it. */
function rootReceiver(expression: Expression): Expression {
  let at = expression;
  while (
    !isCallOf(at, new Set(['own'])) &&
    at.kind === SyntaxKind.CallExpression &&
    (at as CallExpression).expression.kind === SyntaxKind.PropertyAccessExpression
  )
    at = receiver(at as CallExpression);
  return at;
}

function isInside(node: Node, matches: (outer: Node) => boolean): boolean {
  for (let at = node.parent; at !== undefined && !isFunction(at); at = at.parent) if (matches(at)) return true;
  return false;
}

/** The name that holds the result of a call: of a declaration, an assignment, or a field. */
function assignedTo(call: Node): Node | undefined {
  for (let at: Node = call; at.parent !== undefined; at = at.parent) {
    const parent = at.parent as Node & { name?: Node; left?: Node };
    if (parent.kind === SyntaxKind.VariableDeclaration) return parent.name;
    if (parent.kind === SyntaxKind.BinaryExpression) return parent.left;
    if (parent.kind === SyntaxKind.Block) return undefined;
  }
  return undefined;
}

function typeNames(type: Type | undefined): string[] {
  if (type === undefined) return [];
  // The members of a union cannot be asked for when a tuple is among them.
  if (type.isUnionType())
    return checker
      .typeToString(type)
      .split(' | ')
      .map((member) => /^[\w.]*/.exec(member)?.[0].split('.').pop() ?? '');
  const name = type.getSymbol()?.name;
  return name === undefined ? [] : [name];
}

function isPromise(type: Type | undefined): boolean {
  return typeNames(type).some((name) => name === 'Promise' || name === 'PromiseLike');
}

/** Ends in `.catch(...)`: nothing comes after it that could throw. */
function isCaught(expression: Expression): boolean {
  return isCallOf(expression, new Set(['catch']));
}

function isPromiseTimer(call: Call, source: SourceFile): boolean {
  return call.arguments === undefined || (isCallOf(call, timers) && /^import .*from 'node:timers\/promises'/m.test(source.text));
}

/** One `try` that is the whole body and gives what it catches to a boundary: the form of hot paths, without a closure. */
function isGuardedBlock(body: Node | undefined): boolean {
  const { statements } = (body ?? {}) as { statements?: readonly Node[] };
  const only = statements?.[0];
  if (statements?.length !== 1 || only?.kind !== SyntaxKind.TryStatement) return false;
  const text = (only as Node & { catchClause?: Node }).catchClause?.getText() ?? '';
  return /\bcaught\(|#failed\(/.test(text);
}

/** A function of the caller (`resolve`), or one that does nothing but assign and call what cannot throw. */
function isHarmlessCallback(callback: Expression, definitions: ReadonlyMap<string, Expression>): boolean {
  if (callback.kind === SyntaxKind.Identifier) return harmless.has((callback as unknown as { text: string }).text);
  if (!isFunction(callback)) return isCallOf(callback, boundaryMethods);
  const { body } = callback as Node & { body?: Node };
  if (isGuardedBlock(body)) return true;
  let isSafe = body !== undefined && !callback.getText().startsWith('async');
  const visit = (node: Node): void => {
    if (node.kind === SyntaxKind.CallExpression) {
      const name = calleeName(node as CallExpression);
      if (boundaryMethods.has(name) && name !== 'own') return;
      const definition = definitions.get((node as CallExpression).expression.getText());
      if (!harmless.has(name) && !(definition !== undefined && isCallOf(definition, boundaryMethods))) isSafe = false;
    }
    if (node.kind === SyntaxKind.NewExpression && !calleeName(node as NewExpression).endsWith('Error')) isSafe = false;
    if (node.kind === SyntaxKind.ThrowStatement || node.kind === SyntaxKind.AwaitExpression) isSafe = false;
    node.forEachChild(visit);
  };
  if (body !== undefined) visit(body);
  return isSafe;
}
