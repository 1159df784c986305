"""Tables that `language` judges by: ordinary English words, and characters that only one Chinese script uses.

`ORDINARY` tells 这个 feature 很 powerful (English words in a Chinese sentence) from 用 pandas 读文件 (a name). It lists
what is certainly ordinary, so that an unknown word counts as a name. Words that Chinese programmers write in lower case
as terms (for 循环, list, token, loss) and words that Chinese has borrowed (app, email, bug) are left out on purpose.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The most frequent lower-case words of the English halves of LLaMA-Factory's Alpaca and DPO demonstration files
# (Apache-2.0), pruned by hand as said above.
ORDINARY = _words("""
    ability able about above absolutely account accurate accurately achieve across action actions active activities
    activity actually add added addition additional address advanced advantages advice affect after again against
    age all allow allowing allows along already also always am amazing among amount analysis analyze angry animals
    another answer any anything application applications apply approach appropriate approximately are area areas
    around arrange article artist ask aspects assessment assistant associated at audience available average avoid
    away awesome back balance based basic basically beautiful beauty because become becomes been before behavior
    behind being below benefits best better between beyond big bit book boss both breakfast bring brother budget
    building built business businesses busy but buy buying calculate call called came can cannot car care career
    carefully cases category cause certain certainly challenge challenges challenging chance change changes
    character characteristics cheap check child children choice choose chosen city cleaning clear climate close
    cognitive college come comes comfortable coming comment common communication community companies company
    complete complex complexity comprehensive computer computers computing concept conclusion conditions confidence
    confirm connection cons consequences consider considered considering contact content contrast contribute control
    convenient conversations cool correct cost costs could countries country course create created creating creative
    creativity critical crucial cultural culture current customer customers daily damage day days deadline decided
    decision decisions decrease defective definitely definition delicious delivery demand depending deposit depth
    describe design designed despite detailed details determine develop developed developing development did
    difference differences different difficult digital dinner direct directly disadvantages discuss dish diverse
    does dog doing done down due during each early easily easy economic economy education effect effective
    effectively effects efficiency efficient effort efforts either emotional emotions employees energy engaging
    enhance enjoy enough ensure ensuring entire environment environmental equal equipment especially essay essential
    ethical even evening ever every everything evidence example examples excellent existing expensive experience
    experienced experiences experiment explain explanation explore faces fall family famous fantastic far father
    favorite feature features feedback feel feelings feet few filled final financial find finding first flexible
    focus follow following food forces found free fresh friend friendly friends full fun further future general
    generally getting give given gives goal goals going good got government great greater group grow growth guess
    had handle hands happy hard has have having he health healthcare healthy hello help helpful helps her here hey
    hi high higher highly him his history hold holiday hope hours house how however human idea ideas identify impact
    impacts implications importance important improve include includes including income increase increased
    increasing individual individuals industry influence influenced information infrastructure inside instead
    instruction intelligence interest international into introduce introduction investment involve involved involves
    issue issues it its itself job just keep kids kind know knowledge known lack land language large larger last
    later lead leading learn learning least leaves less let life light like likely limited little lives living
    located location longer look looking lost lot love lovely low lower lunch made maintain maintaining major make
    makes making manage management manager manner many market marketing match matches matter may maybe me meaning
    means measures medical meet meeting members men mental message might million minutes modern money month months
    more morning most mother motivation movement movie much multiple must my named national natural near necessary
    need needed needs negative never news nice night non observed off offer offering offers often oil okay old ones
    online only operations opportunities opportunity optimize organizations other others our outcomes outside over
    overall overview own paper part particles particular particularly parts passage past patient patterns pay people
    perfect perform performance period person personal personalized perspective place places plan plans plays please
    popular population positive possible potential potentially power powerful practice practices predictions
    preferences present presentation pressure prevent preview price prices principles priority probability problem
    problems process processes processing produce produced product production products professional profit project
    pros provide provided provides providing purchase purpose put quality question questions quickly quite rather
    reach reaction reactions readers ready real reality really reason receive received reducing regarding regular
    rejected related relationships release relevant report represents require required requires research resources
    rest results review reviews risk risks room safe safety said same satisfaction say scene schedule school science
    season security see seems seen selection sense sentence service setting several share shared sharing she should
    shows significant significantly similar simple simplify simply since sister situation situations skills small
    smaller smooth social society software solution solutions solve some someone something sorry special specific
    standards starting step steps still story strategies strategy strong structure student students study subject
    success successful such suggest suggestion suggests suitable summary supply support sure take taken takes taking
    talk teacher team techniques technologies technology tell than thank thanks that the their them themselves then
    therapy there these they thing things think third those though thought through throughout time times tip tips
    tired today together tomorrow too took top topic touch towards traditional translation transportation travel
    treatment two typically under understand understanding unique units until use used users uses using usually
    valuable variety various very visit want was water way ways we weather week weekend welcome well went were what
    when where whether which who whole why will win within without woman women won wonderful words work workflow
    working works world would writing written years yes yesterday you young your yourself
""")

# Interjections and sentence openers: English even when they stand alone and capitalised (Sure！以下是……).
OPENERS = _words("""
    absolutely additionally also answer because certainly conclusion finally first furthermore good great hello here
    hey hi however i'd i'll i'm indeed let let's moreover nice note okay overall please really second so sorry sure
    thank thanks that that's then there therefore these they this those very we welcome well what when where which
    why yes you you're your
""")

# Lower-case words that stand inside titles and names: Lord of the Rings, Ludwig van Beethoven.
CONNECTORS = _words("a an and at da de del der di du el en et for in la le of on or the to und van von vs with y")

# Function words by which Latin text shows that it is English, or French, German, Spanish, Italian or Portuguese.
ENGLISH_FUNCTION = _words("""
    a about an and are as at be been but by can could did do does for from had has have he her his how i if in into
    is it its my no not of on or our she should so than that the their them there these they this to was we were
    what when which who will with would you your
""")
OTHER_FUNCTION = _words("""
    aber auch auf avec che como con da dans das dem den der des di du ein eine el elle est et eu fait für gli ich il
    ist je la las le les lo los mais mit muy nach nicht nous não oder os ou par para pas per più por pour qu que qui
    se sehr sich sie sind son sono su sur também um uma un una und une unos van vous wie wir zu é été être
""")

# Endings that mark a lower-case word of six letters or more as ordinary English, and the technical terms among those.
ENDINGS = (
    *("tion", "tions", "ment", "ments", "ness", "ful", "fully", "less", "able", "ible"),
    *("ous", "ously", "ive", "ively", "ally", "ity", "ance", "ence"),
)
TECHNICAL = _words("""
    activation annotation argument arguments attention augmentation authentication callable collection collections
    configuration connection convolution element exception executable function functions generation immutable
    implementation iterable iteration mutable normalization notification observable option options partition
    position primitive quantization readable reference regression relation segment sequence session stable statement
    table tokenization transaction translation validation variable variance writable
""")

# The 600 most frequent characters that differ, aligned, from OpenCC 1.4.2 STCharacters (Apache-2.0): one-to-one pairs
# whose simplified form is no common character of Big5 (台 and 后 are Traditional too) and whose traditional form is not
# in GB 2312.
SIMPLIFIED = frozenset(
    "个这国说为们来没种还视会对过东学样觉实时别现问话亚吗点当发恶题数体给关经动无开黄确欢强该应论权让认长"
    "从内见语骂质区广两进业气爱华难脸机类结据头边钱间义电与带湾标错杀较网变观计总妈员贵骗苏处谁讨产单传统"
    "评车场压帮务请识将优资选门师盖导欧历风讲调轻词战汉买级厌图线万号况记习证报户绝设极够严尔马运达虽乐响"
    "远决负价态连条试专队脑创韩复术医卖书写简满读显军独适谢宁肤剧声亲张毕层离争议护穷装随赞抢势职节妇楼团"
    "属联称众环养领换许农组击济办热闻陆刚饭庆诉维惊频恋费泪双阳参戏转仅乱择喷隶断却异举龙际细红枪项辑伤规"
    "责岁输纯构围罗谓则约爷谈乡险续帅虑获验铁逻温兰备兴络宝锅礼减赛阶鸡状录惯误园终颜顶键码须尽测练贫厉丝"
    "飞继软辽补触鱼额积块艺执释岛审轨虚课财凭鲜党冲画脏贴辈怀脚胁编丢针杂纪丽顺担闹灵卫蛮顿销潜劳懒药归绿"
    "奥训签盘奖县败营货预惨烦讽银织顾杨拥购弃检饰犹馆怜罢俩肃坚紧猪刘贤纳脱献绩协贱伦扰残赶竞疗圣绪隐粤梦"
    "镜饮壮贩链汤遗违伪赚废库励访灭龄临监洁莱烂骚阴祸亿树孙寻妆译贡毁篮纸钟猫陈烧骑陕胜愤疯净稳缘闭贬静损"
    "弹烟劲敌蓝贼酱驳诚础贝碍摆耻滚径镇笔倾胆赖轮吓赋狱删厅扬辩聪沟侠厂绍裤诺玛饼乔宾宽齐荣尝档罚旧谱羡赢"
    "诈盗鲁麦萨绑汇吴灯奋摄卧详郑骤阅沪鸟伟邮载袭舆坛闺横圆综扩厕宫乌骄询挣劝涂挤闲储迁忆叶赌钢滥页灾挥亏"
    "邻墙纹娱撑凉谋饱递彻仑殴税盐账驾辆猎腻偿锤辞浓趋诗怂窝窃腾苹赏兽阵夺纠矿抛浅硕葱弯贸拟册粮谅纽驱贷届"
)
TRADITIONAL = frozenset(
    "個這國說爲們來沒種還視會對過東學樣覺實時別現問話亞嗎點當發惡題數體給關經動無開黃確歡強該應論權讓認長"
    "從內見語罵質區廣兩進業氣愛華難臉機類結據頭邊錢間義電與帶灣標錯殺較網變觀計總媽員貴騙蘇處誰討產單傳統"
    "評車場壓幫務請識將優資選門師蓋導歐歷風講調輕詞戰漢買級厭圖線萬號況記習證報戶絕設極夠嚴爾馬運達雖樂響"
    "遠決負價態連條試專隊腦創韓復術醫賣書寫簡滿讀顯軍獨適謝寧膚劇聲親張畢層離爭議護窮裝隨贊搶勢職節婦樓團"
    "屬聯稱衆環養領換許農組擊濟辦熱聞陸剛飯慶訴維驚頻戀費淚雙陽參戲轉僅亂擇噴隸斷卻異舉龍際細紅槍項輯傷規"
    "責歲輸純構圍羅謂則約爺談鄉險續帥慮獲驗鐵邏溫蘭備興絡寶鍋禮減賽階雞狀錄慣誤園終顏頂鍵碼須盡測練貧厲絲"
    "飛繼軟遼補觸魚額積塊藝執釋島審軌虛課財憑鮮黨衝畫髒貼輩懷腳脅編丟針雜紀麗順擔鬧靈衛蠻頓銷潛勞懶藥歸綠"
    "奧訓籤盤獎縣敗營貨預慘煩諷銀織顧楊擁購棄檢飾猶館憐罷倆肅堅緊豬劉賢納脫獻績協賤倫擾殘趕競療聖緒隱粵夢"
    "鏡飲壯販鏈湯遺違僞賺廢庫勵訪滅齡臨監潔萊爛騷陰禍億樹孫尋妝譯貢毀籃紙鍾貓陳燒騎陝勝憤瘋淨穩緣閉貶靜損"
    "彈煙勁敵藍賊醬駁誠礎貝礙擺恥滾徑鎮筆傾膽賴輪嚇賦獄刪廳揚辯聰溝俠廠紹褲諾瑪餅喬賓寬齊榮嘗檔罰舊譜羨贏"
    "詐盜魯麥薩綁匯吳燈奮攝臥詳鄭驟閱滬鳥偉郵載襲輿壇閨橫圓綜擴廁宮烏驕詢掙勸塗擠閒儲遷憶葉賭鋼濫頁災揮虧"
    "鄰牆紋娛撐涼謀飽遞徹侖毆稅鹽賬駕輛獵膩償錘辭濃趨詩慫窩竊騰蘋賞獸陣奪糾礦拋淺碩蔥彎貿擬冊糧諒紐驅貸屆"
)
