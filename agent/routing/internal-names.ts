/**
 * Names of services as programs write them: `web.home.internal` in the network that this node calls `home`, `web.nas.home.internal` for the
 * offer of one member. Their labels are those of networks, members and services, which are all made of lower-case letters, digits and
 * hyphens; what a program asks for may be written in any case.
 */

export const TOP = 'internal'
/** RFC 1035, section 2.3.4, without the last dot. */
const NAME_LENGTH_MAX = 253

export function nameOf({ service, node, network }: { service: string; node?: string; network: string }): string {
  return [service, ...(node === undefined ? [] : [node]), network, TOP].join('.')
}

/** As names are compared: in lower case, without a dot at the end. Undefined for what can be no name. */
export function normalName(text: string): string | undefined {
  const name = text.toLowerCase().replace(/\.$/, '')
  return name.length <= NAME_LENGTH_MAX && /^[0-9a-z_-]{1,63}(\.[0-9a-z_-]{1,63})*$/.test(name) ? name : undefined
}

/** `home` of `web.nas.home.internal`, and of `home.internal` itself; undefined for names that do not end like that. */
export function networkOf(name: string): string | undefined {
  const labels = name.split('.')
  return labels.at(-1) === TOP && labels.length >= 2 ? labels.at(-2) : undefined
}
