import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { RBAC_Action, RBACSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import fc from 'fast-check';
import { RequestHead } from '../message/request-head.ts';
import { normalizeTarget, type PathSettings, settleTarget } from '../route/normalize-path.ts';
import { RuleSet } from './rule-set.ts';
import { requestSubject } from './subject.ts';

/** The levels of `pathNormalization`, as the control plane hands them to a proxy. MERGE_SLASHES is the default where rules look at paths. */
const levels: Readonly<Record<string, PathSettings | undefined>> = {
  BASE: undefined,
  MERGE_SLASHES: { mergesSlashes: true, escapedSlashes: 'keep' },
  DECODE_AND_MERGE_SLASHES: { mergesSlashes: true, escapedSlashes: 'unescape' },
};

/** The target that the server receives; undefined: the request is refused. */
const forwarded = (target: string, paths: PathSettings | undefined) => (paths === undefined ? normalizeTarget(target) : settleTarget(target, paths)?.target);

/** How servers find the resource of a target: models of their documented behaviour, in the most tolerant configuration of each. */
const servers: Readonly<Record<string, (target: string) => string>> = {
  /** Tomcat, WebSphere: parameters go first, then escapes are decoded, then `\` is a slash (encodedSolidusHandling=decode, ALLOW_BACKSLASH). */
  tomcat: (target) => clean(percent(strip(pathOf(target))).replaceAll('\\', '/')),
  /** Jetty, Undertow: escapes are decoded first, `%3B` begins parameters too. */
  jetty: (target) => clean(strip(percent(pathOf(target)))),
  /** Spring's and RESTEasy's dispatchers decode again what the container hands them. */
  spring: (target) => clean(percent(strip(percent(strip(pathOf(target)))))),
  /** Go, Node.js, nginx: no parameters. */
  plain: (target) => clean(percent(pathOf(target))),
  /** IIS, and servers that decode UTF-8 by hand: `%u` escapes, overlong UTF-8, two rounds. */
  iis: (target) => clean(short(percent(short(percent(wide(pathOf(target)))))).replaceAll('\\', '/')),
};
const pathOf = (target: string) => target.split('?')[0]!;
const strip = (path: string) => path.replace(/;[^/]*/g, '');
const percent = (path: string) => path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
const wide = (path: string) => path.replace(/%u00([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
const short = (path: string) =>
  path.replace(/[\xc0\xc1][\x80-\xbf]/g, (two) => String.fromCharCode(((two.charCodeAt(0) & 1) << 6) | (two.charCodeAt(1) & 0x3f)));
function clean(path: string): string {
  const found: string[] = [];
  for (const segment of path.split('/')) {
    if (segment === '..') found.pop();
    else if (segment !== '' && segment !== '.') found.push(segment);
  }
  return `/${found.join('/')}`;
}

const rules = (action: RBAC_Action, prefix: string) => {
  const condition = (value: object) => ({
    rule: { case: 'urlPath' as const, value: { rule: { case: 'path' as const, value: { matchPattern: value as never } } } },
  });
  const permissions = [condition({ case: 'exact', value: prefix }), condition({ case: 'prefix', value: `${prefix}/` })];
  const principals = [{ identifier: { case: 'any' as const, value: true } }];
  return new RuleSet(create(RBACSchema, { action, policies: { admin: { permissions, principals } } }), 'test');
};
const info = {
  ...{ remoteAddress: '10.0.0.2', remotePort: 1, localAddress: '10.0.0.1', localPort: 80 },
  ...{ isOriginalDestination: false, isTls: false, serverName: '', applicationProtocols: [] },
};
const subjectOf = (target: string) => {
  const head = new RequestHead();
  Object.assign(head, { method: 'GET', target, authority: 'shop' });
  return requestSubject(head, info, undefined, () => undefined);
};
const isBelow = (path: string, prefix: string) => path === prefix || path.startsWith(`${prefix}/`);

const separators = [
  ...[
    '/',
    '/',
    '/',
    '//',
    '///',
    '/./',
    '\\',
    '/\\',
    '%2f',
    '%2F',
    '%5c',
    '%5C',
    '/%2e/',
    '/x/../',
    '/x/%2e%2e/',
    '/x/..\\',
    '/..%2f',
    '/x/..%2F',
    '/x%2f..%2f',
    '/x/..%5c',
  ],
  ...[
    '/;a=b/',
    '/;/',
    '/x;y/../',
    '/x/..;/',
    '/x/..;x=y/',
    '/x/..%3b/',
    '/.;/',
    '/%3b/',
    '/x/..%2f;/',
    '/x/..%2f;a=b/',
    '/x/%2e%2e%2f',
    '%252f',
    '/x/..%252f',
    '/%252e%252e/',
    '/x/%c0%ae%c0%ae/',
  ],
  ...['%c0%af', '/x/%u002e%u002e/', '/;a=%2f/', '/x;%2f../', '/x;/..;/../', '/%20/../'],
];
const letters = (letter: string) => {
  const code = letter.charCodeAt(0);
  const hex = code.toString(16);
  const overlong = `%c${code >> 6}%${(0x80 | (code & 0x3f)).toString(16)}`;
  return fc.constantFrom(...[letter, letter, letter, letter], `%${hex}`, `%${hex.toUpperCase()}`, `%25${hex}`, overlong, overlong.toUpperCase(), `%u00${hex}`);
};
const word = (text: string) => fc.tuple(...[...text].map(letters)).map((all) => all.join(''));
const ends = [
  '',
  '',
  ';',
  ';a=b',
  '%3b',
  '%3Ba=b',
  '/',
  '/users',
  ';a=b/users',
  '%2fusers',
  '//',
  '/.',
  '/x/..',
  '?a=b',
  ';?',
  '/;',
  '%2f;a',
  '\\users',
  '/%2e',
  '%5cusers',
];
const spelling = (name: string) =>
  fc.tuple(fc.array(fc.constantFrom(...separators), { minLength: 0, maxLength: 3 }), word(name), fc.constantFrom(...ends)).map(([before, text, end]) => {
    const start = before.join('') || '/';
    return `${start.startsWith('/') ? '' : '/'}${start.endsWith('/') || /[\\fF5c]$/.test(start) ? start : `${start}/`}${text}${end}`;
  });

describe('the spellings of a path', () => {
  const runs = { numRuns: 20_000, seed: 20261130 };
  const deny = rules(RBAC_Action.DENY, '/admin');

  it('that reach a denied path of any server are denied or refused, at every level of normalisation', () => {
    let reached = 0;
    fc.assert(
      fc.property(spelling('admin'), (target) => {
        for (const [level, paths] of Object.entries(levels)) {
          const given = forwarded(target, paths);
          if (given === undefined) continue;
          for (const [server, read] of Object.entries(servers)) {
            if (!isBelow(read(given), '/admin')) continue;
            reached++;
            assert.equal(deny.match(subjectOf(given)), 'admin', `${level}: ${target} is forwarded as ${given}, which ${server} reads as ${read(given)}`);
          }
        }
      }),
      runs,
    );
    assert.ok(reached > 20_000, `${reached} spellings reach the path: the generator is worth something`);
  });

  it('that an ALLOW rule accepts reach no other path of a server that decodes escapes once', () => {
    const allow = rules(RBAC_Action.ALLOW, '/public');
    let accepted = 0;
    fc.assert(
      fc.property(fc.tuple(spelling('public'), spelling('admin')), ([a, b]) => {
        const target = a.split('?')[0]! + b;
        for (const [level, paths] of Object.entries(levels)) {
          const given = forwarded(target, paths);
          if (given === undefined || allow.match(subjectOf(given)) === undefined) continue;
          accepted++;
          for (const server of ['tomcat', 'jetty', 'plain'] as const)
            assert.ok(
              isBelow(servers[server]!(given), '/public'),
              `${level}: ${target} is forwarded as ${given}, which ${server} reads as ${servers[server]!(given)}`,
            );
        }
      }),
      runs,
    );
    assert.ok(accepted > 500, `${accepted}`);
  });

  it('that were found by hand are denied', () => {
    for (const target of [
      ...[
        '/admin',
        '/%61dmin',
        '//admin',
        '/./admin',
        '/x/../admin',
        '/x/%2e%2e/admin',
        '/admin%2f',
        '/admin;a=b',
        '/admin/',
        '/admin?',
        '\\admin',
        '/\\admin',
      ],
      ...[
        '/user;x=y/../admin',
        '/x;/../admin',
        '/;/admin',
        '/;a/admin;b/users',
        '/x%2f..%2fadmin',
        '/%c1%a1dmin',
        '/%c0%afadmin',
        '/x/%c0%ae%c0%ae/admin',
        '/%2561dmin',
        '/%u0061dmin',
      ],
      ...['/admin%3Ba=b', '/admin%5cusers', '/x/..%5cadmin', '/x/..%2f;a/admin', '/admin;', '/admin;/..;b'],
    ])
      for (const [level, paths] of Object.entries(levels)) {
        const given = forwarded(target, paths);
        if (given !== undefined) assert.equal(deny.match(subjectOf(given)), 'admin', `${level}: ${target}`);
      }
    for (const target of ['/user/..;x=y/admin', '/x/..;/admin', '/x/..%3b/admin', '/.;/admin', '/admin%00', '/../admin'])
      for (const paths of Object.values(levels)) assert.equal(forwarded(target, paths), undefined, target);
  });

  it('of other paths are not denied, with parameters and escapes in them', () => {
    for (const target of [
      '/',
      '/administration',
      '/a;b=c/d',
      '/files/a%20b',
      '/files/%E6%9D%B1',
      '/x%2Fadmin',
      '/my/admin',
      '/a//b',
      '/100%25',
      '/;admin',
      '/a;/admin',
      '/x;admin/y',
    ])
      assert.equal(deny.match(subjectOf(target)), undefined, target);
    assert.equal(rules(RBAC_Action.ALLOW, '/files').match(subjectOf('/files/a%20b;v=1%2F2')), 'admin');
    assert.equal(rules(RBAC_Action.DENY, '/東京').match(subjectOf('/%e6%9d%b1%E4%BA%AC')), 'admin', 'a rule may be written without escapes');
    assert.equal(rules(RBAC_Action.DENY, '/%E6%9D%B1').match(subjectOf('/%e6%9d%b1')), 'admin');
  });
});
