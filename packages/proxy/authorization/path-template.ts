import { MizzenError } from '@mizzen/common';

const segment = /^[A-Za-z0-9\-._~%!$&'()+,;:@=]+$/;
const anySegment = "[A-Za-z0-9\\-._~%!$&'()+,;:@=]+";
const anyRest = "[A-Za-z0-9\\-._~%!$&'()+,;:@=/]*";

/**
 * Paths by segments (envoy uri_template_match.proto): `*` is one whole segment, `**` all that follows and only at the end. What is made of it takes
 * linear time: segments cannot be split in two ways.
 */
export function compilePathTemplate(template: string, place: string): { readonly fits: (path: string) => boolean; readonly prefix: string } {
  const parts = template.split('/');
  const refuse = (why: string) => new MizzenError('invalid-path-template', `${place}: ${JSON.stringify(template)} is no path template: ${why}`);
  if (parts[0] !== '') throw refuse('it begins with /');
  const patterns = parts.slice(1).map((part, i, all) => {
    const isLast = i === all.length - 1;
    if (part === '*') return anySegment;
    if (part === '**') {
      if (!isLast) throw refuse('** is its last segment');
      return anyRest;
    }
    if (part === '' && isLast) return '';
    if (!segment.test(part)) throw refuse(`${JSON.stringify(part)} is no segment`);
    return part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  });
  const whole = new RegExp(`^/${patterns.join('/')}$`);
  const firstOperator = template.indexOf('*');
  return { fits: (path) => whole.test(path), prefix: firstOperator < 0 ? template : template.slice(0, firstOperator) };
}
