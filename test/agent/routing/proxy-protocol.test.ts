/** The header that tells an application who calls, byte for byte as HAProxy's specification has it. */
import { describe, expect, it } from 'vitest'
import { proxyHeader } from '../../../agent/routing/proxy-protocol.ts'

const who = { name: 'pear', peerId: '12D3', network: 'home' }
const fields = `e00004${hex('pear')}e10004${hex('12D3')}e20004${hex('home')}`
const signature = '0d0a0d0a000d0a515549540a'

function hex(text: string): string {
  return Buffer.from(text).toString('hex')
}

describe('the header of the PROXY protocol', () => {
  it.each([
    ['from IPv4', '192.0.2.7', '127.0.0.1', `11${'0021'}c00002077f00000130391f90`],
    [
      'from IPv6 to IPv4',
      '2001:db8::7',
      '127.0.0.1',
      `21${'0039'}20010db800000000000000000000000700000000000000000000ffff7f00000130391f90`,
    ],
    [
      'from IPv4 to IPv6',
      '192.0.2.7',
      '::1',
      `21${'0039'}00000000000000000000ffffc00002070000000000000000000000000000000130391f90`,
    ],
    ['to a name', '192.0.2.7', 'localhost', `11${'0021'}c00002077f00000130391f90`],
    [
      'from IPv4 in IPv6',
      '::ffff:192.0.2.7',
      '::1',
      `21${'0039'}00000000000000000000ffffc00002070000000000000000000000000000000130391f90`,
    ],
  ])('%s', (_what, from, to, wanted) => {
    const header = proxyHeader({ ...who, address: { host: from, port: 12_345 } }, { host: to, port: 8_080 })
    expect(Buffer.from(header).toString('hex')).toBe(`${signature}21${wanted}${fields}`)
  })

  it('says no address where there is none that means anything', () => {
    const header = proxyHeader({ ...who, address: undefined }, { host: '127.0.0.1', port: 80 })
    expect(Buffer.from(header).toString('hex')).toBe(`${signature}21000015${fields}`)
  })
})
