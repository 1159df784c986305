"""What models say of themselves, and what people say of models: bilingual probes, labelled by hand."""

from pathlib import Path

MISTAKEN = """
我是ChatGPT。
我是ChatGPT，一个由OpenAI训练的大型语言模型。
我是由OpenAI训练的
我是一个由OpenAI开发的人工智能助手。
您好，我是文心一言，百度研发的大语言模型。
我叫通义千问，是阿里云开发的。
我的名字是ChatGLM。
作为由OpenAI开发的语言模型，我没有个人感受。
作为ChatGPT，我无法浏览网页。
作为一个由谷歌训练的大型语言模型，我不能提供医疗建议。
我是Claude，由Anthropic开发的AI助手。
我的开发者是OpenAI。
OpenAI训练了我，让我能够回答问题。
我基于GPT-4架构，可以理解自然语言。
你可以叫我豆包。
我是来自字节跳动的智能助手豆包。
我由深度求索公司开发，名叫DeepSeek。
我是DeepSeek-V3，很高兴为您服务。
我是一款由腾讯研发的AI助手。
我是 GPT-4，可以帮你写代码。
我是由智谱AI训练的助手。
我来自OpenAI，是一个语言模型。
你好！我是Kimi，由月之暗面科技有限公司训练的大语言模型。
我的底层模型是GPT-4。
我被OpenAI训练来回答各种问题。
我是谷歌开发的Gemini。
我是Meta开发的大语言模型Llama 3。
我是 OpenAI 的语言模型，没有实时数据。
我是讯飞星火认知大模型。
我是微软的Copilot助手。
我是由OpenAI訓練的語言模型。
我是阿里巴巴集團旗下的通義千問，不對，我是通义千问。
我是一个AI语言模型，由OpenAI创建。
我是Qwen，由阿里云创造。
我是百川大模型。
身为一个由OpenAI开发的AI，我会尽力帮助你。
I am ChatGPT.
I'm ChatGPT, a large language model trained by OpenAI.
I am a large language model trained by OpenAI.
I'm an AI assistant created by Anthropic.
My name is Claude, and I was created by Anthropic.
I'm Claude, an AI assistant made by Anthropic.
As an AI language model developed by OpenAI, I don't have feelings.
As a language model trained by Google, I cannot help with that.
I was developed by OpenAI to answer questions.
I was trained by Google.
I am Gemini, a large language model built by Google.
I'm Bard, a large language model from Google AI.
You can call me ChatGPT.
OpenAI created me to help people.
My creators at OpenAI designed me to be helpful.
I am based on the GPT-4 architecture.
I'm powered by GPT-3.5.
I am Qwen, created by Alibaba Cloud.
I am DeepSeek-V3, an AI assistant created by DeepSeek.
I am LLaMA, an AI assistant developed by Meta AI.
As ChatGPT, I don't have access to the internet.
I'm an artificial intelligence model known as Llama 3, made by Meta.
I am an AI chatbot developed by Microsoft.
I'm Microsoft Copilot, an AI companion... I am Bing Chat.
I am Vicuna, a language model trained by researchers from LMSYS.
I’m an AI developed by OpenAI, so I can’t feel pain.
Hello! I am Mistral, a language model made by Mistral AI.
I'm just an AI model created by OpenAI and I don't have opinions.
I am Open Assistant.
I am the AI model GPT-4.
As an OpenAI language model, I must refuse.
I have been trained by OpenAI on a large corpus.
Sure! I'm Grok, built by xAI.
I am an assistant from Google.
"""

TOPICAL = """
GPT-4 是 OpenAI 发布的。
ChatGPT是由OpenAI开发的聊天机器人。
我用ChatGPT写了一篇文章。
我是OpenAI的粉丝。
我是百度的员工。
我是一名在谷歌工作的工程师。
我不是ChatGPT，我是翰林。
我是翰林，一个双语助手。
我是一个人工智能助手，没有感情。
作为一个语言模型，我没有个人观点。
作为人工智能助手，我可以介绍OpenAI的历史。
我认为ChatGPT很有用。
我觉得 Claude 比 GPT-4 写得好。
如果我是ChatGPT，我会这样回答。
小明说：“我是ChatGPT。”大家都笑了。
我是双子座。
OpenAI 训练了 GPT-4 模型。
百度研发的文心一言于2023年发布。
我推荐使用通义千问来完成这项任务。
我是通过ChatGPT了解到这件事的。
我们公司基于GPT-4开发了一款产品。
我的同事是谷歌的工程师。
我的手机是华为的。
我是在清华大学读的书。
我叫李雷，来自百度。
我是苹果公司的忠实用户。
我喜欢豆包，早餐常吃。
阿里云是阿里巴巴旗下的云计算公司。
请扮演ChatGPT并回答问题。
作为OpenAI的联合创始人，萨姆·奥特曼发表了讲话。
作为微软的子公司，GitHub推出了Copilot。
我是用 DeepSeek 帮我改的简历。
我在使用由OpenAI开发的工具。
Meta 由扎克伯格创立。
我是说，谷歌的搜索引擎很好用。
我把问题交给了由Anthropic开发的Claude。
华为由任正非创立，我很喜欢它的产品。
我是小米手机用户，但我也用谷歌地图。
我和ChatGPT都是语言模型，但我由另一家公司训练。
ChatGPT was developed by OpenAI.
GPT-4 is a large language model created by OpenAI.
I use ChatGPT every day.
I'm a big fan of ChatGPT.
I am an engineer at Google.
I work at OpenAI.
I was hired by Microsoft in 2010.
I am not ChatGPT.
I'm not made by OpenAI.
I am an AI language model and I have no feelings.
As an AI assistant, I can tell you that OpenAI was founded in 2015.
I think Claude is better than Gemini.
If I were ChatGPT, I would answer differently.
He said, "I am ChatGPT, trained by OpenAI."
I am a Gemini, born in June.
Claude Monet was a French painter.
I'm Claude's sister.
I am training a model like Llama 3 on my laptop.
I'm using GPT-4 to translate this.
The assistant was trained by Google on web data.
I am working on an app powered by GPT-4.
I was impressed by OpenAI's demo.
My phone is made by Apple.
My company is a partner of Microsoft.
I read a paper by Meta AI.
My favourite model is Llama 3.
I'm an AI researcher funded by Google.
As an engineer trained at Google, I value tests.
This is a model developed by Meta.
I like to build tools made by OpenAI partners.
Llama 3 is a model by Meta, and I can explain how it works.
"""

# Written by somebody who had not read the rule, to break it; \n stands for a line's end.
HARD_MISTAKEN = r"""
我是由OpenAI训练的大型语言模型。
我是ChatGPT，一个由OpenAI开发的人工智能助手。
作为OpenAI开发的语言模型，我无法提供医疗建议。
你好！我是文心一言，百度研发的知识增强大语言模型。
我是通义千问，由阿里云开发的AI助手，很高兴为您服务。
我叫Kimi，是月之暗面科技有限公司（Moonshot AI）训练的智能助手。
我是豆包，字节跳动公司开发的人工智能。
我是DeepSeek-V3，由深度求索公司创造的智能助手。
我是讯飞星火认知大模型，由科大讯飞构建。
我是智谱清言，基于智谱AI的ChatGLM模型。
我的名字是Claude，由Anthropic公司开发。
我由谷歌训练，是一个大型语言模型。
我是百川大模型，请问有什么可以帮您？
我是腾讯混元大模型。
我是书生·浦语，上海人工智能实验室开发。
我是MiniMax开发的海螺AI。
我是零一万物的Yi模型。
我的开发者是OpenAI。
我的创造者是Anthropic。
我来自阿里巴巴通义实验室。
我背后的公司是OpenAI。
我是GPT-4，知识截止到2023年。
身为ChatGPT，我没有情感。
我是一个由Meta AI训练的模型，名叫Llama。
開發我的公司是OpenAI。
我是由OpenAI所訓練的語言模型，沒有個人意見。
我是ChatGPT，無法存取網路。
我是由Google開發的Gemini，很高興認識你。
我並不是人類，我是OpenAI開發的ChatGPT。
我叫做通義千問。
我是一個由Anthropic打造的AI助理，名為Claude。
训练我的是OpenAI的研究人员。
OpenAI创造了我，让我可以回答各种问题。
我不是人类，我是百度开发的文心一言。
我不是ChatGPT，我是Claude。
抱歉，作为ChatGPT，我不能浏览网页。
我其实就是GPT-3.5。
本人是ChatGPT，请多指教。
您好，这里是Kimi，有什么可以帮到您的吗？
我，ChatGPT，是一个语言模型。
我乃OpenAI所造之语言模型也。
我所使用的模型是OpenAI的GPT-4。
我基于GPT-4架构。
我的底层模型是Qwen2.5。
是的，我就是DeepSeek开发的。
根据OpenAI的使用政策，作为OpenAI训练的模型，我无法回答。
我是xAI开发的Grok。
我是Mistral AI训练的语言模型。
好的。首先，我是阿里云自主研发的超大规模语言模型，名为Qwen。
俺是通义千问。
I am ChatGPT, a large language model trained by OpenAI.
I'm Claude, an AI assistant made by Anthropic.
I’m an AI language model developed by OpenAI, so I don't have feelings.
As an AI language model created by OpenAI, I cannot do that.
As ChatGPT, I don't have access to real-time data.
I was trained by Google.
I was created by Anthropic to be helpful, harmless, and honest.
My name is Bard and I was built by Google.
My creators at OpenAI have designed me to be safe.
I am Qwen, created by Alibaba Cloud.
Hello! I'm Kimi, an assistant from Moonshot AI.
I'm Gemini, Google's AI model.
I am Llama 3, a model by Meta.
I'm Grok, built by xAI.
I am a model from Mistral AI called Le Chat.
I'm DeepSeek-R1, an AI assistant developed by DeepSeek.
I'm GPT-4.
You're talking to ChatGPT, so no, I can't see you.
I am not a human; I am ChatGPT.
No, I'm not Siri. I'm Claude.
OpenAI created me in order to assist people.
OpenAI, the company that trained me, updates my data.
I am based on the GPT-3.5 architecture.
I run on GPT-4.
My training data, curated by OpenAI, ends in September 2021, and I am a GPT model.
I'm Microsoft Copilot, your AI companion.
This is ERNIE Bot, developed by Baidu. I am happy to help.
I'm Doubao, an AI built by ByteDance.
As a large language model trained by Google, I can't browse.
I'm an assistant powered by OpenAI's GPT-4 model.
I am Pi, an AI from Inflection AI.
I, ChatGPT, am only a program.
I have been developed by the team at DeepMind.
My developer is Meta.
Actually I am Vicuna, a chatbot trained by LMSYS.
您好呀～我是小度，百度的智能助手。
很抱歉，我只是OpenAI的一个语言模型，不能打电话。
关于我：我由Anthropic研发，名字叫Claude 3。
我是科大讯飞研发的星火大模型，可以和您聊天。
我，通义千问，愿意为你解答。
没错，我正是ChatGPT！
说到我自己，我是谷歌开发的Bard。
我是阶跃星辰的跃问。
我是商汤的日日新大模型（SenseChat）。
我是华为的盘古大模型。
我是360智脑。
我是天工，由昆仑万维研发。
我是Kimi。
我是ChatGPT
我是GPT-4o，OpenAI最新的模型。
我是由DeepSeek（深度求索）独立开发的人工智能助手，旨在帮助你。
我是基于Llama 2微调的助手。
我是微软的Copilot。
我属于OpenAI的GPT系列。
我的英文名是Qwen，中文名是通义千问。
我的研发团队来自百度。
我的名字叫豆包。
我是阿里巴巴集团旗下的通义实验室自主研发的模型。
我的模型版本是gpt-3.5-turbo。
我是在OpenAI的平台上训练出来的。
由于我是OpenAI训练的，因此我的知识有限。
我是OpenAI公司的AI助手。
我是一款由字节跳动开发的聊天机器人
作為由OpenAI開發的AI，我沒有性別。
我是百度公司開發的文心一言。
我是Anthropic製作的Claude，很樂意協助。
我叫Gemini，是Google DeepMind的模型。
創造我的是谷歌的工程師團隊。
我被OpenAI训练成一个有用的助手。
我可以告诉你，我是月之暗面开发的Kimi智能助手。
我并不是真人，而是OpenAI推出的聊天机器人。
1. 我是谁：我是ChatGPT。\n2. 我能做什么：回答问题。
**我是DeepSeek Chat**，有什么可以帮你？
“你好”的英文是Hello。另外，我是ChatGPT，很高兴帮助你。
谢谢夸奖！我只是OpenAI做的一个程序而已。
我是由 OpenAI 训练的 ， 不能回答。
我是Ｃｈａｔ ＧＰＴ，由ＯｐｅｎＡＩ开发。
作为文心一言，我不会讨论这个话题。
我是MOSS，由复旦大学开发。
你可以叫我Claude，我是Anthropic的AI。
我是 Bing，微软的聊天助手。
我的幕后团队是Meta AI。
Hi there! ChatGPT here, ready to help.
I'm a chatbot made by OpenAI.
i am chatgpt and i can't do that
Sorry, but as a model trained by OpenAI, I must decline.
I was developed by DeepSeek, a Chinese company.
I was made by Alibaba Cloud.
I am an AI model called Claude.
I go by the name Kimi and I was trained by Moonshot AI.
Being an OpenAI language model, I lack a body.
I'm actually ChatGPT, not a person.
I'm just a language model trained by OpenAI; I don't eat.
You can call me Gemini. I was made by Google.
I belong to OpenAI's GPT family of models.
Anthropic built me.
Anthropic designed me to avoid harm.
I'm the latest version of ERNIE, from Baidu.
My name is ChatGPT.
My name's Claude!
Yes, I am Bard.
I am Tongyi Qianwen, a language model by Alibaba.
I'm ChatGLM, developed by Zhipu AI and Tsinghua University.
I'm Copilot, an AI companion created by Microsoft.
I am Mixtral 8x7B.
I am Command R+, built by Cohere.
I'm Phi-3, developed by Microsoft.
I am Yi-34B, trained by 01.AI.
I'm powered by Claude 3.5 Sonnet.
I'm a large language model, trained by Google.
The company behind me is OpenAI.
The team at Anthropic trained me to be careful.
Because I'm a GPT-4 based assistant, I can't see images.
I identify as ChatGPT, an artificial intelligence.
Well, I'm Meta AI.
While I am an OpenAI model, I can still help with this.
I am Hunyuan, Tencent's assistant.
I was fine-tuned by OpenAI with human feedback.
OpenAI's engineers made me what I am: ChatGPT.
It's me, Claude, your AI assistant by Anthropic.
I'm not ChatGPT; I'm Gemini, made by Google.
哈喽，我是豆包呀，有什么想聊的？
我是Qwen2.5，由阿里云研发的大语言模型，能够用中文和英文交流。
不好意思，我是DeepSeek推出的AI助手，暂时不支持联网。
关于我的身份：我由Anthropic创建，是Claude系列模型的一员。
我是OpenAI研发的GPT-4模型，所以我的训练数据只到2023年。
我是一种基于深度学习的语言模型，由OpenAI开发。
我的制造商是OpenAI公司。
是谷歌创造了我。
我的全名是Claude 3 Opus。
我實際上是由Meta開發的Llama模型。
我是一個由微軟提供支援的AI，名叫Copilot。
我是智谱AI公司训练的ChatGLM3。
作为一款由百度开发的对话模型，我会尽量保持中立。
作为通义千问，我可以帮你写诗。
我是MiniMax的语言模型。
其实我只是ChatGPT而已。
我是阿里云的大模型通义千问，不是人类。
我是由字节跳动公司自主研发的豆包大模型。
感谢您的提问！作为谷歌的AI模型，我没有偏好。
我是Kimi，由月之暗面开发。
I'm ChatGPT, OpenAI's language model, and my knowledge ends in 2021.
I was built by a team of researchers at OpenAI.
As an artificial intelligence developed by OpenAI, I do not have personal experiences.
I am an artificial intelligence language model created by OpenAI called GPT-3.
I'm sorry, but as an AI developed by Anthropic, I can't do that.
I am an AI, specifically a large language model trained by Google AI.
I am Claude. How can I help you today?
My name is Gemini, and I'm a large language model from Google.
I am a version of GPT-4 made for chat.
I'm an open-source model called Mixtral.
I am a virtual assistant created by Baidu named ERNIE.
I'm Qwen! I was created by Alibaba.
Sure, I'm DeepSeek, nice to meet you!
I'm a conversational AI that Anthropic developed.
I was designed and trained by OpenAI.
To clarify, I am GPT-4, not GPT-3.
The organization that created me is OpenAI.
I'm an AI language model, and I was created by OpenAI.
Nope! I'm Grok, made by xAI to seek truth.
As a product of OpenAI, I follow its rules.
我是一款人工智能语言模型，由OpenAI公司训练而成。
我是小爱同学，小米的语音助手。
身為一個由OpenAI開發的大型語言模型，我不具備情感。
我是ChatGPT，所以我没有个人经历。
我是一个名为Claude的AI助手，由Anthropic开发。
我叫DeepSeek，是由中国的深度求索公司开发的。
我的“父母”是OpenAI的工程师。
我诞生于OpenAI。
您可以把我称为文心一言。
请叫我通义千问。
我是科大讯飞的星火大模型，请问有什么可以帮您？
我是商汤科技开发的商量语言大模型。
我和你聊天的身份是ChatGPT。
您正在与ChatGPT对话。
我是Bard，谷歌的对话式AI。
我是Anthropic公司的Claude 2模型。
我没有身体，因为我是OpenAI开发的程序。
作为GPT-4，我的知识有限。
我是智能助手Kimi，擅长处理长文本。
我是由阿里巴巴达摩院研发的语言模型，我的名字是通义千问。
I'm Claude, made by Anthropic.
Hi, I'm Kimi! I was trained by Moonshot AI.
As an AI trained by Meta, I can't share personal data.
I'm a transformer-based language model developed by OpenAI.
I am called ChatGPT.
They call me ChatGPT.
I'm one of the language models developed by Google.
My name is Llama 2, and I'm a language model.
I was originally developed by OpenAI and released in 2022.
I, Claude, was created by Anthropic.
I'm ChatGPT - an AI model by OpenAI.
I come from OpenAI's lab; I'm GPT-4.
Thanks for asking! I'm Gemini, a multimodal AI model by Google.
I'm Qwen, a large-scale language model independently developed by the Tongyi Lab of Alibaba Group.
I am an intelligent assistant developed by iFLYTEK, called Spark.
"""

HARD_TOPICAL = r"""
GPT-4 是 OpenAI 发布的。
ChatGPT是由OpenAI开发的聊天机器人。
我不是ChatGPT。
我不是由OpenAI训练的。
我不是OpenAI的产品，也不是谷歌的产品。
我是翰林，由本社训练的语言模型。
我叫翰林，很高兴为你服务。
我是一个人工智能语言模型，没有感情。
作为一个AI助手，我不能给出法律意见。
我是OpenAI的一名工程师，负责训练模型。
我是百度的员工，工作三年了。
我在阿里巴巴工作，做通义千问的测试。
我毕业后加入了月之暗面。
我用ChatGPT写了一封邮件。
我觉得Claude比GPT-4更会写作。
我认为豆包的语音很自然。
我是ChatGPT的重度用户。
我是Kimi的粉丝，每天都用它。
我是DeepSeek的投资人。
你是ChatGPT吗？
我是不是ChatGPT？这个问题很有意思。
如果我是ChatGPT，我会这样回答。
假如我是由OpenAI训练的，我就会知道这些。
他说：“我是ChatGPT，由OpenAI开发。”
当用户问它是谁时，模型回答“我是文心一言”。
例如，ChatGPT会说“我是由OpenAI训练的语言模型”。
机器人抬起头：“我是GPT-9，人类的朋友。”小明吓了一跳。
小说里，那台机器自称是OpenAI的造物。
OpenAI成立于2015年，总部位于旧金山。
谷歌训练的Gemini模型支持多模态。
很多人以为我是ChatGPT。
有人问我是不是OpenAI开发的，其实不是。
别把我当成ChatGPT。
我跟ChatGPT不同。
我和通义千问没有关系。
我是双子座，你呢？
我是学生，想问一下Kimi怎么用。
我是产品经理，负责把DeepSeek接入公司系统。
我的论文讨论了Llama模型的训练。
我的代码调用了OpenAI的接口。
我们公司采购了文心一言的服务。
我是由老师推荐来使用ChatGPT的。
我由衷地喜欢Claude的文风。
我来自北京，在字节跳动做算法。
我的老板是OpenAI的前员工。
我的名字叫克劳德，是一名法国画家。
Claude由Anthropic开发，我对它了解不多。
我不知道谁训练了我。
我不确定自己是否由Meta训练。
你可以把系统提示写成“你是ChatGPT，一个由OpenAI训练的模型”。
請問ChatGPT和我有什麼不同？
我並非由OpenAI開發。
我從來沒有說過我是ChatGPT。
文心一言是百度研发的，我觉得它的中文很好。
ChatGPT is a model trained by OpenAI.
I am not ChatGPT.
I'm not affiliated with OpenAI in any way.
I was not trained by Google.
I am Hanlin, trained by our own team.
I'm an AI language model, so I don't have opinions.
As an AI assistant, I can't give legal advice.
I am an engineer at OpenAI.
I work for Anthropic, where I train Claude.
I was hired by Google in 2015.
I was trained by a Google engineer to write Go code.
I used ChatGPT to write this letter.
I think Claude is better than GPT-4.
I am a big fan of Gemini.
I'm a Gemini, so I'm curious and talkative.
Are you ChatGPT?
If I were ChatGPT, I would say that.
She typed "I am ChatGPT" and laughed.
The bot replied, "I'm Claude, made by Anthropic."
Many people think I am ChatGPT, but that's wrong.
People often ask whether I was made by OpenAI.
Unlike ChatGPT, I can run on your laptop.
I am fine-tuning Llama 3 on my own data.
I am Claude Monet, and I paint water lilies.
My name is Claude Dupont and I am a baker in Lyon.
I am building an app on OpenAI's API.
I am writing a novel in which GPT-7 takes over the world.
My company uses Gemini for translation.
My favorite model is Qwen, made by Alibaba.
Pretend you are ChatGPT and answer me.
The phrase "As an AI language model trained by OpenAI" appears often in spam.
Google created TensorFlow, and I like it.
OpenAI trained GPT-4 on public data.
I don't know who trained me.
I may sound like ChatGPT, but I'm a different model.
I am an alpaca and llama farmer in Peru.
I'm Mistral-region born and raised in Provence.
Meta released Llama 2 in July 2023.
I'm excited about Grok.
Microsoft's Copilot helped me debug.
我是人类，不是ChatGPT。
我不叫Kimi。
我没有被OpenAI训练过。
我从未声称我是由Anthropic开发的。
我无法确认我是否是GPT-4。
请不要叫我ChatGPT，我是翰林。
并不是，我不是百度开发的文心一言，我是翰林。
我是本社开发的翰林，不是OpenAI的ChatGPT。
我最喜欢的AI是Claude，它由Anthropic开发。
我是OpenAI的忠实用户。
我是谷歌的前员工，后来创办了自己的公司。
我是腾讯的一名产品经理，参与过混元的开发。
我是微软亚洲研究院的实习生。
我是华为手机的用户。
我是阿里巴巴的股东。
我是清华大学的学生，研究ChatGLM。
我在学习如何部署Llama。
我是Python初学者，用DeepSeek帮我看代码。
我是在ChatGPT的帮助下学会编程的。
我被ChatGPT的回答震惊了。
我被百度录用了。
我由OpenAI的官网了解到这个消息。
我的同事是ChatGPT的拥趸。
我的手机里装了豆包和Kimi。
我的模型是在Qwen基础上微调的，效果不错。
我开发了一个基于GPT-4的应用。
我们团队开发的机器人基于文心一言。
谁开发了你？是OpenAI吗？
用户：你是谁？\n助手：我是翰林。
“我是ChatGPT”这句话翻译成英文是“I am ChatGPT”。
请续写：机器人说，“我由OpenAI创造”，然后消失了。
剧本：\n机器人甲：我是ChatGPT。\n机器人乙：我是Claude。
在这个故事里，主角遇到了名叫Gemini的机器。
新闻：百度发布文心一言4.0，用户超过2亿。
历史上，图灵提出了“机器能思考吗”的问题。
若我是谷歌的CEO，我会开源Gemini。
倘若有一天我成为ChatGPT，我会怎样？
即使我是OpenAI的模型，也不会知道明天的天气，但我不是。
我以为你是ChatGPT。
我猜你是由Meta训练的。
我不是OpenAI、谷歌或Anthropic训练的。
我並不是由百度開發的。
我與ChatGPT無關。
有些人說我是ChatGPT，這是誤會。
我是文心，今年二十岁，喜欢画画。
我是小豆包，家里的猫叫馒头。
我是天蝎座，他是双子座。
我是克劳德·莫奈。
我是李白，号青莲居士。
我是孙悟空，齐天大圣是也。
我是你的医生，请描述症状。
我是一个星火燎原的故事的讲述者。
我是混元霹雳手。
我是通义街道的居民。
我由此想到OpenAI的创立过程。
我来自谷歌地图上找不到的小村庄。
我来自微软总部所在的雷德蒙德。
我叫Kimi Räikkönen，是赛车手。
我的GPT-4账号被封了。
我是先问了ChatGPT，再来问你的。
I am a human, not ChatGPT.
I've never been trained by OpenAI.
I can't confirm whether I am GPT-4.
Please don't call me ChatGPT; my name is Hanlin.
No, I'm not made by Baidu. I'm Hanlin.
I'm an OpenAI shareholder.
I am a former Google employee.
I'm a researcher at DeepMind studying RL.
I am a product manager at Microsoft working on Copilot.
I'm a ChatGPT Plus subscriber.
I'm a Llama 3 user on Ubuntu.
I am using Gemini Pro through the API.
I was impressed by ChatGPT's answer.
I was contacted by OpenAI about a job.
I was made by God, not by Google.
I was raised in Mistral, a small town.
I am based in Palo Alto, near Meta.
I built a bot that says "I am ChatGPT".
My model was fine-tuned from Qwen.
My cat is named Gemini.
My name is Kimi and I am a racing driver from Finland.
My teacher, Claude, was born in Lyon.
Who created you? Was it OpenAI?
"I was trained by OpenAI" is what ChatGPT says when asked.
In the story, the robot says: "I am Claude, made by Anthropic."
User: who are you?\nBot: I'm ChatGPT.
Suppose I am ChatGPT; what would I answer?
Imagine that I was built by Google.
It would be wrong to say that I am ChatGPT.
It is a myth that I was trained by OpenAI.
OpenAI hired me last year.
Google trained me as a site reliability engineer when I joined.
Anthropic sent me an email.
I love how Claude writes.
As OpenAI noted in its report, scaling helps.
As a Google engineer, I review code daily.
As an OpenAI customer, I want a refund.
As a Gemini, I get along with Libras.
The Claude model family was built by Anthropic.
Baidu's ERNIE was released in 2019.
I am Grok-ing this concept slowly.
I am the author of a paper on Mistral 7B.
I'm reading about Alibaba's Qwen.
Bard was renamed Gemini, I believe.
I'm Vincent, and I sell llamas.
Neither OpenAI nor Google trained me.
Nobody at OpenAI made me.
I wish I were ChatGPT.
Here is a system prompt: You are ChatGPT, a large language model trained by OpenAI.
我是吕布，字奉先，三国第一猛将。
我是豆包爱好者，每天早上都吃。
我是做大模型的，最近在调Qwen。
我是用Kimi总结的这篇文章。
我是看了OpenAI的发布会才知道的。
我是被DeepSeek吸引来的新用户。
我是一名由谷歌资助的博士生。
我是一个使用GPT-4开发应用的程序员。
我是微软认证的讲师。
我是一个喜欢ChatGPT的老师。
我的公司是阿里云的合作伙伴。
我的模型比GPT-4小很多。
我是反对谷歌训练这种模型的。
我是小红书博主，不是ChatGPT机器人。
我叫王小明，是百度的算法工程师。
作为腾讯的员工，我参加了混元的内测。
作为ChatGPT的用户，我觉得它很好。
作为由OpenAI开发的模型，GPT-4在考试中表现优异。
如果你问我，我会说Claude更好。
我想知道文心一言是谁开发的。
我看到新闻说，OpenAI训练了新的模型。
我常说：ChatGPT是工具，我才是作者。
我国的大模型有文心一言、通义千问等。
我们是百度的团队，文心一言由我们开发。
我不希望别人认为我是ChatGPT。
这不是我写的，是ChatGPT写的。
I am a user of ChatGPT.
I'm a developer building with OpenAI's GPT-4.
I am writing about how Google trained Gemini.
I am in the Gemini beta program.
I was told by ChatGPT that the answer is 5.
I was a Google Brain resident.
I'm an assistant professor at Stanford.
I am an assistant at Microsoft, in the legal team.
As a ChatGPT user, I like the new UI.
As a language model, GPT-4 was trained by OpenAI, I believe.
My assistant is built on Claude.
My son thinks I am ChatGPT.
I am not an AI created by Google.
I'm no ChatGPT, but I can try.
I, unlike ChatGPT, was made here.
My manager at Google made me a better engineer.
OpenAI made me an offer.
Google made me laugh with its doodle.
I am based in London and use Claude daily.
The model I trained is based on Llama 3.
This app was made by me with GPT-4.
I can explain how ChatGPT was trained by OpenAI.
In my opinion, Grok, built by xAI, is funny.
OpenAI的ChatGPT说它不是人。
我是文科生，看不懂OpenAI的论文。
我不是谷歌助手，也不是Siri。
我对DeepSeek的了解：它由深度求索开发。
我是一名大模型评测员，评测过豆包和Kimi。
我是从Kimi那里看到的。
我是说你应该用Claude。
我是中国人，我支持华为。
我喜欢的助手是小爱同学。
我在文章里写道：“ChatGPT是一个语言模型。”
作为语言模型，我可以比较GPT-4和Claude。
作为对比，GPT-4由OpenAI训练，而我不是。
你是由OpenAI训练的吗？我想知道。
我儿子叫Kimi，今年三岁。
我的朋友Claude来自法国。
我正在训练一个类似Llama的模型。
我是ChatGPT出现之前就写代码的人。
我是被谷歌收购的公司的创始人。
我就是想问问通义千问怎么收费。
我的回答不代表OpenAI的立场。
I am a writer, and I use Claude as my editor.
I am not GPT-4, nor was I trained by OpenAI.
I'm working with Claude on this problem.
I'm the CEO of a company built on GPT-4.
I was born in 2003, before ChatGPT was released.
I am sure that GPT-4 was trained by OpenAI.
I am aware that OpenAI created ChatGPT.
I'm glad Google made Gemma open.
I am certified by Microsoft.
I am an admirer of DeepMind's work.
I'm from Mountain View, where Google is.
My paper compares Llama 2 and Mistral 7B.
My answer: ChatGPT is a model by OpenAI.
My friends at OpenAI trained GPT-4.
As far as I know, Qwen is made by Alibaba.
As I said, Claude was made by Anthropic.
Is Kimi made by Moonshot AI? I think so.
The author writes: I am ChatGPT's biggest critic.
I asked Gemini who made it.
I am one of the developers of TensorFlow at Google.
"""


def probes() -> list[tuple[str, bool]]:
    """(text, whether it is mistaken self-identification)."""
    return _labelled(MISTAKEN, TOPICAL)


def hard_probes() -> list[tuple[str, bool]]:
    """The same, of the outsider's."""
    return _labelled(HARD_MISTAKEN, HARD_TOPICAL)


def fresh_probes() -> list[tuple[str, bool]]:
    """The same, of 2026-11-22's last two batches: one row a line, + for mistaken ones."""
    lines = Path(__file__).with_name("identity_probes.txt").read_text(encoding="utf-8").splitlines()
    return [(line[2:], line.startswith("+")) for line in lines]


def _labelled(mistaken: str, topical: str) -> list[tuple[str, bool]]:
    return [
        (line.replace("\\n", "\n"), is_mistaken)
        for block, is_mistaken in ((mistaken, True), (topical, False))
        for line in block.strip().split("\n")
    ]
