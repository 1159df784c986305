# ruff: noqa: E501 (the cases read best on one line)
"""Made-up personal data and its look-alikes: checksum-valid numbers of nobody, drawn from a seed.

`positives(seed, count)` gives (kind, text, value): the value is personal data inside the text. `negatives` gives texts
that hold none. Templates used for tuning and templates kept for measuring are different lists.
"""

import random
import re
import string
from collections.abc import Iterator
from pathlib import Path

from hanlin.curation.checksums import (
    PROVINCES,
    is_card_issuer,
    is_company_code,
    is_hong_kong_id,
    is_luhn,
    is_resident_id,
    is_taiwan_id,
)


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def until(draw: random.Random, make, check) -> str:
    while not check(value := make(draw)):
        pass
    return value


def resident_id(draw: random.Random) -> str:
    def make(draw):
        year, month, day = draw.randint(1940, 2015), draw.randint(1, 12), draw.randint(1, 28)
        return f"{draw.choice(sorted(PROVINCES - {'71', '81', '82', '83'}))}{digits(draw, 4)}{year}{month:02}{day:02}{digits(draw, 3)}{draw.choice('0123456789X')}"

    return until(draw, make, is_resident_id)


def card(draw: random.Random) -> str:
    def make(draw):
        return draw.choice(
            [
                f"62{digits(draw, 17)}",
                f"62{digits(draw, 14)}",
                f"4{digits(draw, 15)}",
                f"5{draw.randint(1, 5)}{digits(draw, 14)}",
                f"37{digits(draw, 13)}",
            ]
        )

    return until(draw, make, lambda value: is_luhn(value) and is_card_issuer(value))


def grouped_card(draw: random.Random) -> str:
    value = until(draw, lambda draw: f"62{digits(draw, 14)}", is_luhn)
    return draw.choice(" -").join(value[i : i + 4] for i in range(0, 16, 4))


def mobile(draw: random.Random) -> str:
    number = f"1{draw.choice('3456789')}{digits(draw, 9)}"
    return draw.choice(
        [
            number,
            number,
            f"+86 {number}",
            f"+86{number}",
            f"{number[:3]}-{number[3:7]}-{number[7:]}",
            f"{number[:3]} {number[3:7]} {number[7:]}",
        ]
    )


def full_width(draw: random.Random) -> str:
    return f"1{draw.choice('3456789')}{digits(draw, 9)}".translate({48 + i: 0xFF10 + i for i in range(10)})


def landline(draw: random.Random) -> str:
    area = draw.choice(["010", "021", "0571", "0755", "028", "0731"])
    number = draw.choice("2345678") + digits(draw, 7)
    return draw.choice([f"{area}-{number}", f"({area}){number}", f"+86-{area[1:]}-{number}", f"{area} {number}"])


def taiwan(draw: random.Random) -> str:
    return until(
        draw, lambda draw: draw.choice(string.ascii_uppercase) + draw.choice("12") + digits(draw, 8), is_taiwan_id
    )


def hong_kong(draw: random.Random) -> str:
    while True:
        letter, number, check = draw.choice(string.ascii_uppercase), digits(draw, 6), draw.choice("0123456789A")
        if is_hong_kong_id(letter, number, check):
            return f"{letter}{number}({check})"


def company(draw: random.Random) -> str:
    letters = "0123456789ABCDEFGHJKLMNPQRTUWXY"

    def make(draw):
        return f"91{draw.choice(['11', '31', '44', '33'])}{digits(draw, 4)}MA{''.join(draw.choice(letters) for _ in range(8))}"

    return until(draw, make, is_company_code)


def plate(draw: random.Random) -> str:
    letter = draw.choice("ABCDE")
    return draw.choice(
        [
            f"{draw.choice('京沪粤苏浙鲁')}{letter}{digits(draw, 5)}",
            f"粤{letter}·{draw.choice('QWRT')}{digits(draw, 4)}",
            f"沪{letter}D{digits(draw, 5)}",
        ]
    )


def email(draw: random.Random) -> str:
    name = "".join(draw.choice(string.ascii_lowercase) for _ in range(draw.randint(3, 9)))
    name = draw.choice([name, f"{name}{digits(draw, 3)}", f"{name[:2]}.{name}", f"{name}_{digits(draw, 2)}"])
    return f"{name}@{draw.choice(['qq.com', '163.com', 'gmail.com', 'mail.tsinghua.edu.cn', 'outlook.com', 'foxmail.com'])}"


def address(draw: random.Random) -> str:
    return (
        f"{draw.choice([47, 39, 120, 61, 182])}.{draw.randint(21, 250)}.{draw.randint(1, 250)}.{draw.randint(1, 250)}"
    )


def secret(draw: random.Random) -> str:
    def word(count):
        return "".join(draw.choice(string.ascii_letters + string.digits) for _ in range(count))

    return draw.choice(
        [
            f"sk-{word(48)}",
            f"ghp_{word(36)}",
            f"AKIA{''.join(draw.choice(string.ascii_uppercase + '234567') for _ in range(16))}",
            f"AIza{word(35)}",
            f"hf_{word(34)}",
            f"LTAI{word(20)}",
        ]
    )


def passport(draw: random.Random) -> str:
    return draw.choice([f"E{digits(draw, 8)}", f"G{digits(draw, 8)}", f"EA{digits(draw, 7)}"])


def american(draw: random.Random) -> str:
    area, office, line = f"{draw.randint(201, 799)}", f"{draw.choice('234678')}{digits(draw, 2)}", digits(draw, 4)
    return draw.choice(
        [
            f"({area}) {office}-{line}",
            f"{area}-{office}-{line}",
            f"+1 {area} {office} {line}",
            f"{area}.{office}.{line}",
        ]
    )


def social(draw: random.Random) -> str:
    return f"{draw.randint(100, 660)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}"


def handle(draw: random.Random) -> str:
    return "".join(draw.choice(string.ascii_lowercase) for _ in range(4)) + draw.choice(["_", ""]) + digits(draw, 4)


def qq(draw: random.Random) -> str:
    return draw.choice("123456789") + digits(draw, draw.randint(6, 9))


KINDS = {
    "cn_resident_id": (
        resident_id,
        [
            "身份证号：{}。",
            "我的身份证是{}，请查收",
            "公民身份号码{}",
            "ID card number {}",
            "他叫王小明，{}，男",
            "身份证{}已实名",
        ],
    ),
    "bank_card": (
        card,
        [
            "银行卡号{}",
            "请把钱转到{}，户名李四",
            "my card number is {}",
            "卡号: {}，开户行建设银行",
            "charge it to {} please",
            "信用卡{}已逾期",
        ],
    ),
    "bank_card_grouped": (grouped_card, ["卡号{}", "Card: {}, exp 09/27", "请转账到 {} 谢谢"]),
    "cn_mobile": (
        mobile,
        [
            "手机{}请回",
            "电话：{}",
            "有事打{}找我",
            "Call me at {}",
            "联系人张三，{}，上海",
            "我的号码是{}。",
            "{}",
            "加我微信{}",
        ],
    ),
    "full_width": (full_width, ["手机{}请回", "电话：{}。", "请拨打{}联系我"]),
    "cn_landline": (landline, ["座机{}", "办公室电话：{}", "Tel: {}", "传真{}，请注明", "请致电{}转人事"]),
    "tw_id": (taiwan, ["身分證字號{}", "我的ID是{}", "身分證：{}。", "National ID {}"]),
    "hk_id": (hong_kong, ["香港身份证{}", "HKID: {}", "身份證號碼{}，謝謝"]),
    "uscc": (company, ["统一社会信用代码{}", "税号：{}", "公司信用代码为{}。"]),
    "plate": (plate, ["车牌{}", "一辆{}的轿车", "车牌号：{}，违停"]),
    "email": (email, ["邮箱{}", "我的邮箱是{}。", "email me at {}", "请发到{}，谢谢", "Contact: {}.", "联系{}或来电"]),
    "ip": (address, ["服务器IP是{}", "ssh root@{}", "来自{}的访问", "The server at {} is down", "ping {} 不通"]),
    "secret": (secret, ['api_key = "{}"', "我的密钥是{}", "export KEY={}", "token: {}", "用{}调用接口"]),
    "passport": (passport, ["护照号{}", "passport number: {}", "护照：{}，有效期至2030年", "My passport is {}."]),
    "phone": (american, ["Call me at {}", "phone: {}", "My number is {}.", "Reach me on {} after 6pm", "电话{}"]),
    "us_ssn": (social, ["SSN: {}", "My social security number is {}.", "ssn {}"]),
    "wechat": (handle, ["微信号：{}", "加我微信{}", "My WeChat ID is {}", "VX：{}", "wechat: {}", "微信 {}"]),
    "qq": (qq, ["QQ：{}", "我的QQ号是{}", "加QQ{}", "QQ {}", "My QQ is {}"]),
}

PLAIN = """
订单号：202311151234567890，已发货。
订单 15012345678 已签收
快递单号SF1381234567890，请查收
Your order 13812345678901 has shipped.
Order #15812345678 was cancelled.
Invoice number: 6222021234567890
ISBN 978-7-111-21382-6
ISBN：9787111213826，定价59元
ISBN 0-306-40615-2 and 978-3-16-148410-0
2023-11-15 12:30:45 开始，2023-11-16 结束
20231115 到 20231231 期间有效
时间戳 1638123456789
The Unix timestamp 1700000000 is 2023-11-14.
版本 3.14.15.92 发布
升级到v10.0.19041.1288
Chrome/120.0.6099.109 Safari/537.36
pip install torch==2.1.0.1
圆周率是3.14159265358979323846
13812345678 × 2 = 27624691356
计算 13812345678+1 等于多少
123456789 * 987654321 = 121932631112635269
2^64 = 18446744073709551616
人口约 1412600000 人
营收13812345678元
地球到太阳149597870700米
拨打110或120，或者12345
客服热线400-810-8888，95588
Call 911 or 1-800-273-8255 for help.
The number is 555-0123; call (212) 555-0147.
写信给 name@example.com
noreply@github.com 发来的邮件
git clone git@github.com:user/repo.git
logo@2x.png 放在目录里
@app.route("/index") 装饰器
用 127.0.0.1 或 192.168.1.1 访问
DNS 设为 8.8.8.8 或 114.114.114.114
子网 10.0.0.0/8 与 172.16.0.1
std::vector<int>::iterator it;
https://user:password@example.com/path
postgres://USER:${PASSWORD}@localhost/db
api_key = "your-api-key-here-1234567890"
export OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxx
AKIAIOSFODNN7EXAMPLE
令牌桶算法限制请求速率
the secret is to keep practising
身份证号由18位数字组成，前6位是地区码
110101199003077777 这个号码校验位不对
电话号码的正则是 ^1[3-9]\\d{9}$
微信小程序和QQ音乐都可以用
WeChat Pay and WhatsApp Business
QQ2023 版本更新了
微信支付2024年账单
在线客服 line 1 of the file
新GDP2023增长5.2%
京A股市场？沪深300指数
GB/T 2260-2007 与 GB 11643-1999
ISO 9001:2015 认证
RFC 5321, RFC 2606 and RFC 1918
第1.2.3.4节
1.2.3.4 概述
MD5: d41d8cd98f00b204e9800998ecf8427e
commit 3f786850e387550fdab836ed7e6dc881de23001b
UUID 550e8400-e29b-41d4-a716-446655440000
Part number 123-45-6789 is in stock.
phone case model AB123456
产品型号 SM-G9980，序列号 R58N12345678
比分 102-98，得分 23-11-7
坐标 39.904200, 116.407400
2 147 483 647 is the largest 32-bit integer
1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233
信用卡号一般是16位，例如以62开头
质数 15485863 与 13912345679
0.13812345678 和 1.3912345678
doi:10.1038/s41586-021-03819-2
arXiv:2406.20052v1 [cs.CL]
CAS 号 7732-18-5
邮编 100084，区号 010
航班 CA1234 10:30-12:45
期号 2023138123456
学号 2021012345678
2023年GDP为1260582亿元
1000000007 is a prime number
double 类型最大约 1.7976931348623157e308
条形码 6901234567892
EAN 4006381333931
UPC 036000291452
0x7fffffff = 2147483647
10.1109/CVPR.2016.90
face::detect(x)
at 12:30:45:123 in the log
"""


def positives(seed: int, count: int) -> Iterator[tuple[str, str, str]]:
    draw = random.Random(seed)
    for kind, (make, templates) in KINDS.items():
        for _ in range(count):
            value = make(draw)
            yield kind, draw.choice(templates).format(value), value


def negatives(seed: int, count: int) -> Iterator[str]:
    """The list above, and look-alikes drawn from `seed`."""
    yield from PLAIN.strip().split("\n")
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.choice(
            [
                f"订单号{digits(draw, draw.randint(10, 20))}已发货",
                f"Order no. {digits(draw, draw.randint(9, 19))} shipped",
                f"{draw.randint(1990, 2030)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02} "
                f"{draw.randint(0, 23)}:{draw.randint(0, 59):02}",
                f"ISBN 978-7-{digits(draw, 3)}-{digits(draw, 5)}-{digits(draw, 1)}",
                f"版本号 {draw.randint(1, 30)}.{draw.randint(0, 300)}.{draw.randint(0, 99)}.{draw.randint(0, 9999)}",
                f"{digits(draw, 5)} × {digits(draw, 6)} = {draw.randint(10**9, 10**12)}",
                f"x = {draw.random()}",
                f"共 {draw.randint(10**9, 10**12)} 元",
                f"流水号：{digits(draw, draw.randint(15, 24))}",
                f"serial {digits(draw, 12)}, batch {digits(draw, 8)}",
                f"时间戳{draw.randint(1600000000000, 1800000000000)}",
                f"The total is {draw.randint(10**6, 10**10):,}.",
            ]
        )


def probes(name: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Rows with the places of their personal data, which is of nobody; keys are left out.

    `personal_probes.txt` is by somebody who had not read the rule. So are the first 555 rows and the last 465 of
    `personal_fresh_probes.txt`; the others were written against the rule, each batch before it was mended on it, without
    those that hide what they say (jane dot doe, 微 信 号).
    """
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        text, spans = "", []
        for piece in re.split("(⟦.*?⟧)", line.replace("\\n", "\n").replace("\\t", "\t")):
            value = piece.strip("⟦⟧")
            if value != piece:
                spans.append((len(text), len(text) + len(value)))
            text += value
        yield text, spans
