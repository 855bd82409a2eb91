/** What people see of names: those in use, and the lines for resolvers. */
import { describe, expect, it } from 'vitest'
import type { NamesApi } from '../../../agent/api/names-api.ts'
import { NodeNamesApi } from '../../../agent/node/api-names.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeNames } from '../api/fake-names.ts'
import { run } from './capture.ts'

async function ask(words: string[], names: NamesApi = fakeNames) {
  await using agent = await serve({ names })
  return await run(words, { socket: agent.socket })
}
const parts = {
  names: { list: () => fakeNames.list(), reverseZone: undefined },
  dns: { address: { host: '::1', port: 53 } },
}

describe('names', () => {
  it('line up, or there are none', async () => {
    expect((await ask(['names'])).out).toBe(
      `
NAME               ADDRESS     PORTS    CONNECTIONS
web.home.internal  127.77.3.4  80 8080            2
`.trimStart(),
    )
    const none: NamesApi = { ...fakeNames, list: () => ({ range: null, names: [] }) }
    expect((await ask(['names'], none)).out).toMatch(/^No program of this machine has asked/)
    expect(JSON.parse((await ask(['names', '--json'])).out)).toMatchObject({ range: '127.77.0.0/16' })
  })
})

describe('dns-conf', () => {
  it('prints a file for one resolver, and both with where they go', async () => {
    expect((await ask(['dns-conf', 'systemd-resolved'])).out).toBe(
      '[Resolve]\nDNS=127.0.0.1:7453\nDomains=~home.internal ~77.127.in-addr.arpa\nDNSSEC=no\n',
    )
    expect((await ask(['dns-conf', 'dnsmasq'])).out).toBe(
      'server=/home.internal/127.0.0.1#7453\nserver=/77.127.in-addr.arpa/127.0.0.1#7453\nrebind-domain-ok=/home.internal/\n',
    )
    const both = (await ask(['dns-conf'])).out
    expect(both).toContain('# /etc/systemd/resolved.conf.d/undernet.conf; then: systemctl restart systemd-resolved\n')
    expect(both).toContain('# /etc/dnsmasq.d/undernet.conf; then:')
  })

  it('says what is missing', async () => {
    expect(await ask(['dns-conf', 'bind'])).toMatchObject({
      status: 2,
      err: expect.stringContaining('systemd-resolved, dnsmasq'),
    })
    const off = new NodeNamesApi({ ...parts, dns: undefined, routing: { networks: () => [] } })
    expect((await ask(['dns-conf'], off)).err).toMatch(/DNS server is off .*--dns 127.0.0.1:7453/s)
    const alone = new NodeNamesApi({ ...parts, routing: { networks: () => [] } })
    expect((await ask(['dns-conf'], alone)).err).toMatch(/in no closed network.*agent join/s)
    const six = new NodeNamesApi({ ...parts, routing: { networks: () => [{ name: 'home' }] as never } })
    expect((await ask(['dns-conf', 'systemd-resolved'], six)).out).toContain('DNS=[::1]:53\n')
  })
})
